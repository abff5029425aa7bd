"""From detector outputs to probability and time, and what is learned from what followed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from vllm_monitor.predictive_failure_detection.detectors import make_detectors
from vllm_monitor.predictive_failure_detection.hazards import (
    ANY_FAILURE,
    EDGES_SECONDS,
    Hazards,
    Weights,
    forecast_of,
    shipped_weights,
)
from vllm_monitor.predictive_failure_detection.late_labels import LateLabels
from vllm_monitor.predictive_failure_detection.recalibration import Recalibration
from vllm_monitor.records import FAILURE_TYPES

BINS = len(EDGES_SECONDS) - 1


def weights() -> Weights:
    return Weights(
        "test",
        ("a", "b"),
        ("engine_stall", ANY_FAILURE),
        np.zeros((2, 1)),
        np.zeros(1),
        np.full((2, BINS), -4.0),
        np.zeros((2, BINS, 3)),
        np.full(2, 0.5),
    )


def probability(hazards: Hazards, terms: np.ndarray) -> float:
    return forecast_of("engine_stall", hazards.hazards(terms)[0]).probability


def test_the_shipped_weights_fit_the_detectors() -> None:
    shipped = shipped_weights()
    assert set(shipped.outputs) <= {name for detector in make_detectors() for name in detector.outputs}
    assert shipped.failure_types == (*FAILURE_TYPES, ANY_FAILURE)
    assert shipped.units.shape == (len(shipped.outputs), len(shipped.unit_bias))
    assert shipped.bias.shape == (len(shipped.failure_types), BINS)
    assert shipped.slope.shape == (*shipped.bias.shape, len(shipped.outputs) + len(shipped.unit_bias))
    assert ((shipped.thresholds > 0) & (shipped.thresholds < 1)).all()


@given(npst.arrays(np.float64, BINS, elements=st.floats(0.0, 1.0)))
def test_a_forecast_is_a_probability_and_an_interval(hazards: np.ndarray) -> None:
    found = forecast_of("x", hazards)
    assert 0.0 <= found.probability <= 1.0
    assert found.probability == pytest.approx(1.0 - np.prod(1.0 - hazards))
    assert 0.0 <= found.seconds_low <= found.seconds <= found.seconds_high <= EDGES_SECONDS[-1]


def test_a_hazard_that_is_all_in_one_bin_gives_its_time() -> None:
    found = forecast_of("x", np.array([0.0, 0.0, 0.9, 0.0, 0.0]))
    assert EDGES_SECONDS[2] <= found.seconds_low < found.seconds < found.seconds_high <= EDGES_SECONDS[3]


def test_what_followed_moves_the_weights_and_little_at_a_time() -> None:
    hazards, danger, calm = Hazards(weights()), np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
    before = probability(hazards, danger)
    hazards.learn(danger, 0, 30.0)
    assert probability(hazards, danger) - before < 0.05
    for _ in range(400):
        hazards.learn(danger, 0, 30.0)
        hazards.learn(calm, 0, None)
    assert probability(hazards, danger) > 0.5
    assert probability(hazards, calm) < 0.2
    assert forecast_of("x", hazards.hazards(danger)[0]).seconds < EDGES_SECONDS[3]
    other = Hazards(weights())
    other.restore(hazards.state())
    assert probability(other, danger) == probability(hazards, danger)


def test_what_was_learned_upon_other_weights_is_left_out() -> None:
    hazards, state = Hazards(weights()), Hazards(weights()).state()
    hazards.restore({**state, "version": "another", "bias": state["bias"] + 5.0})
    assert probability(hazards, np.zeros(3)) == probability(Hazards(weights()), np.zeros(3))


def test_stated_probabilities_that_are_too_high_are_lowered() -> None:
    recalibration = Recalibration()
    assert recalibration.probability(0.7) == pytest.approx(0.7)
    for number in range(3_000):
        recalibration.learn(0.7, happened=number % 5 == 0)
    assert 0.15 < recalibration.probability(0.7) < 0.45
    other = Recalibration()
    other.restore(recalibration.state())
    assert other.probability(0.7) == recalibration.probability(0.7)
    other.restore({"scale": -5.0, "shift": "x"})
    assert other.probability(0.7) == recalibration.probability(0.7)


def settle(labels: LateLabels, times: range, failure_at: int) -> list[tuple[float, int, float | None]]:
    found = []
    for now in times:
        happened = [0] if now == failure_at else []
        found += [(look.at, kind, seconds) for look, kind, seconds in labels.observe(float(now), happened)]
        labels.keep(float(now), np.zeros(3), np.zeros(2), [])
    return found


def test_every_look_gets_what_followed_it_once() -> None:
    labels = LateLabels(2)
    found = settle(labels, range(1_000), 400)
    first = [(at, seconds) for at, kind, seconds in found if kind == 0]
    assert {at: seconds for at, seconds in first if seconds is not None} == {
        float(at): 400.0 - at for at in range(105, 400, 15)
    }
    assert [at for at, seconds in first if seconds is None][:3] == [0.0, 15.0, 30.0]
    assert len({(at, kind) for at, kind, _ in found}) == len(found)
    assert all(seconds is None for _, kind, seconds in found if kind == 1)


def test_after_a_hole_nothing_is_known() -> None:
    labels = LateLabels(2)
    assert settle(labels, range(200), -1) == []
    assert list(labels.observe(1_000.0, [0])) == []
