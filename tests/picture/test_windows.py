"""Rates over a window and quantiles of histograms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_monitor.picture.windows import CounterWindow, histogram_quantile


def vector(*values: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array(values, dtype=np.float64)


@given(st.lists(st.floats(min_value=0, max_value=1e9), min_size=2, max_size=60))
def test_the_increase_is_the_sum_of_steps_with_falls_counted_from_zero(values: list[float]) -> None:
    window = CounterWindow(1000.0)
    for second, value in enumerate(values):
        window.add(float(second), vector(value))
    steps = zip(values[1:], values, strict=False)
    expected = sum(now - before if now >= before else now for now, before in steps)
    grown = window.increase(1000.0)
    assert grown is not None
    assert grown[0] == len(values) - 1
    assert grown[1][0] == pytest.approx(expected, rel=1e-9, abs=1e-3)


def test_a_window_ends_at_the_newest_scrape_and_forgets_old_ones() -> None:
    window = CounterWindow(10.0)
    for second in range(100):
        window.add(float(second), vector(second * 2.0))
    seconds, grown = window.increase(5.0) or (0.0, vector())
    assert (seconds, grown[0]) == (5.0, 10.0)
    seconds, grown = window.increase(1000.0) or (0.0, vector())
    assert 10.0 <= seconds <= 12.0
    assert len(window._points) < 20


def test_nothing_is_known_before_the_second_scrape() -> None:
    window = CounterWindow(10.0)
    assert window.increase(5.0) is None
    window.add(0.0, vector(1.0))
    assert window.increase(5.0) is None


def test_a_restart_counts_everything_from_zero_even_what_has_grown() -> None:
    window = CounterWindow(100.0)
    window.add(0.0, vector(100.0))
    window.add(1.0, vector(150.0), reset=True)
    assert (window.increase(10.0) or (0, vector()))[1][0] == 150.0


def test_a_series_that_appears_or_vanishes_is_no_increase() -> None:
    window = CounterWindow(100.0)
    window.add(0.0, vector(math.nan, 5.0))
    window.add(1.0, vector(1e6, math.nan))
    _, grown = window.increase(10.0) or (0, vector())
    assert grown[0] == 0.0
    assert math.isnan(grown[1])


def test_a_clock_set_back_and_a_new_signature_forget_the_window() -> None:
    window = CounterWindow(100.0)
    window.add(10.0, vector(1.0))
    window.add(5.0, vector(2.0))
    assert window.increase(10.0) is None
    window.add(6.0, vector(2.0, 3.0), signature="other")
    assert window.increase(10.0) is None


@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=12),
    st.floats(min_value=0.0, max_value=1.0),
)
def test_a_quantile_lies_in_the_bucket_of_its_rank(counts: list[int], quantile: float) -> None:
    bounds = vector(*[float(i + 1) for i in range(len(counts) - 1)], math.inf)
    cumulative = np.cumsum(np.array(counts, dtype=np.float64))
    found = histogram_quantile(quantile, bounds, cumulative)
    if cumulative[-1] == 0:
        assert found is None
        return
    assert found is not None
    rank = quantile * cumulative[-1]
    bucket = next(i for i, count in enumerate(cumulative) if count >= rank)
    upper = bounds[min(bucket, len(counts) - 2)]
    assert 0.0 <= found <= upper
    assert bucket == len(counts) - 1 or found >= (bounds[bucket - 1] if bucket else 0.0)


def test_quantiles_are_those_of_prometheus() -> None:
    bounds, cumulative = vector(0.1, 0.5, 1.0, math.inf), vector(10, 30, 40, 40)
    assert histogram_quantile(0.5, bounds, cumulative) == pytest.approx(0.3)
    assert histogram_quantile(0.95, bounds, cumulative) == pytest.approx(0.9)
    assert histogram_quantile(0.99, vector(0.1, math.inf), vector(1, 10)) == 0.1
    assert histogram_quantile(0.5, vector(0.1, 0.5), vector(1, 2)) is None, "no infinite bucket"


def test_what_lies_in_the_first_bucket_is_estimated_from_its_mean() -> None:
    bounds, cumulative = vector(0.3, 0.5, math.inf), vector(100, 100, 100)
    assert histogram_quantile(0.5, bounds, cumulative, total_sum=0.1) == pytest.approx(0.001 * math.log(2))
    assert histogram_quantile(0.95, bounds, cumulative, total_sum=0.1) == pytest.approx(0.001 * math.log(20))
    assert histogram_quantile(0.95, bounds, cumulative, total_sum=29.0) == 0.3
    assert histogram_quantile(0.5, bounds, cumulative) == pytest.approx(0.15), "Prometheus' estimate without a sum"
    assert histogram_quantile(0.5, bounds, vector(50, 100, 100), total_sum=0.1) == pytest.approx(0.3)
