from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from vllm_monitor.terminal.sparkline import sparkline


def test_gaps_are_gaps_and_zero_is_not_little() -> None:
    assert sparkline([0.0, math.nan, 1.0, 100.0], 4) == "▁ ▂█"


def test_the_newest_values_stand_at_the_right() -> None:
    assert sparkline([8.0, 0.0, 8.0], 2) == "▁█"
    assert sparkline([8.0], 3) == "  █"
    assert sparkline([], 3) == "   "
    assert sparkline([1.0], 0) == ""


def test_a_fixed_top_makes_full_mean_full() -> None:
    assert sparkline([0.5], 1, top=1.0) < sparkline([1.0], 1, top=1.0) == "█"


@given(st.lists(st.floats(), max_size=50), st.integers(0, 60), st.booleans())
def test_any_series_fills_its_width(values: list[float], width: int, unicode: bool) -> None:
    drawn = sparkline(values, width, unicode=unicode)
    assert len(drawn) == width
    assert unicode or drawn.isascii()
    shown = values[len(values) - min(width, len(values)) :]
    assert [math.isnan(value) for value in shown] == [mark == " " for mark in drawn[width - len(shown) :]]
