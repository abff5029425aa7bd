"""Every detector keeps the contract, and sees what it is for."""

from __future__ import annotations

import numpy as np
import pytest

from vllm_monitor.predictive_failure_detection.detectors import Detector, make_detectors
from vllm_monitor.predictive_failure_detection.detectors.extrapolation import Extrapolation
from vllm_monitor.predictive_failure_detection.detectors.half_space_trees import HalfSpaceTrees
from vllm_monitor.predictive_failure_detection.detectors.heartbeat_gaps import HeartbeatGaps
from vllm_monitor.predictive_failure_detection.detectors.precursor_patterns import PrecursorPatterns
from vllm_monitor.predictive_failure_detection.detectors.state_graph import StateGraph
from vllm_monitor.predictive_failure_detection.features import FeatureExtractor, Features
from vllm_monitor.testing.detector_contract import DetectorContract

NAMES = [detector.name for detector in make_detectors()]


def make(name: str) -> Detector:
    return next(detector for detector in make_detectors() if detector.name == name)


class Contract(DetectorContract):
    def __init__(self, name: str) -> None:
        self.name = name

    def make(self) -> Detector:
        return make(self.name)


@pytest.mark.parametrize("promise", [name for name in dir(DetectorContract) if name.startswith("test_")])
@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str, promise: str) -> None:
    getattr(Contract(name), promise)()


def score_of(detector: Detector, features: Features, output: str) -> float:
    return float(detector.score(features)[detector.outputs.index(output)])


def follow(detector: Detector, figures: list[dict[str, float]], step: float = 1.0) -> Features:
    extractor = FeatureExtractor()
    features = None
    for number, values in enumerate(figures):
        if features is not None:
            detector.learn(features)
        features = extractor.observe(1e9 + step * number, values, state="ok")
    assert features is not None
    return features


def test_a_figure_on_its_way_to_its_limit_is_near_it() -> None:
    rising, level = Extrapolation(), Extrapolation()
    up = follow(rising, [{"kv_cache_usage_ratio": 0.2 + 0.02 * number} for number in range(25)])
    flat = follow(level, [{"kv_cache_usage_ratio": 0.68} for _ in range(25)])
    assert score_of(rising, up, "kv_near_20s") > 0.8
    assert score_of(level, flat, "kv_near_20s") == 0.0


def test_one_wild_point_is_no_slope() -> None:
    detector = Extrapolation()
    figures = [{"api_open_fds": 100.0, "api_max_fds": 1_000.0} for _ in range(20)]
    figures[10] = {"api_open_fds": 900.0, "api_max_fds": 1_000.0}
    features = follow(detector, figures)
    assert score_of(detector, features, "fds_near_20s") == 0.0


def test_memory_is_measured_against_what_the_host_has_left() -> None:
    detector = Extrapolation()
    figures = [
        {"api_resident_memory_bytes": 1e9 + 6e7 * number, "host_memory_available_bytes": 8e9 - 6e7 * number}
        for number in range(30)
    ]
    assert score_of(detector, follow(detector, figures), "memory_near_20s") > 0.3


def test_an_engine_that_stutters_is_seen_between_scrapes() -> None:
    detector = HeartbeatGaps()
    calm = [{"inter_token_latency_longest_seconds": 0.05, "requests_running": 4.0}] * 60
    stutters = [{"inter_token_latency_longest_seconds": 2.5, "requests_running": 4.0}] * 60
    features = follow(detector, [*calm, *stutters])
    assert score_of(detector, features, "stuttered_lately") > 0.3
    assert score_of(detector, features, "stuttering") == 1.0


def test_what_is_unlike_the_past_stands_out() -> None:
    dice = np.random.default_rng(1)
    detector = HalfSpaceTrees()
    usual = [
        {"requests_running": 8 + dice.normal(), "http_requests_per_second": 3 + 0.3 * dice.normal()} for _ in range(600)
    ]
    like = follow(detector, usual)
    ordinary = score_of(detector, like, "unlike_the_past")
    unlike = follow(HalfSpaceTrees(), [*usual, {"requests_running": 90.0, "http_requests_per_second": 60.0}])
    assert score_of(detector, unlike, "unlike_the_past") > 10.0 * ordinary


def failure_after_a_ramp(extractor: FeatureExtractor, began: float) -> list[Features]:
    """Ten calm minutes, a queue that grows for a minute, and a failure; then calm again."""
    found = []
    for number in range(680):
        waiting = max(0.0, number - 600.0)
        failures = ("queue_saturation",) if number == 660 else ()
        values = {"requests_waiting": 0.0 if number > 660 else waiting, "requests_running": 8.0 + number % 3}
        found.append(
            extractor.observe(
                began + number,
                values,
                is_well=waiting == 0.0,
                state="saturated" if waiting > 5 else "ok",
                failures=failures,
            )
        )
    return found


@pytest.mark.parametrize(
    ("detector", "output"),
    [(PrecursorPatterns(), "queue_saturation_looks_alike"), (StateGraph(), "queue_saturation_from_here")],
)
def test_what_preceded_a_failure_is_recognised_the_second_time(detector: Detector, output: str) -> None:
    extractor = FeatureExtractor()
    scores = []
    for turn in range(3):
        for features in failure_after_a_ramp(extractor, 1e9 + 700.0 * turn):
            scores.append(score_of(detector, features, output))
            detector.learn(features)
    assert max(scores[:660]) < 0.05
    assert scores[2 * 680 + 650] > 0.25
    assert scores[2 * 680 + 300] < 0.6 * scores[2 * 680 + 650]


def test_a_pattern_counts_how_often_it_was_right() -> None:
    detector, extractor = PrecursorPatterns(), FeatureExtractor()
    for turn in range(3):
        for features in failure_after_a_ramp(extractor, 1e9 + 700.0 * turn):
            detector.learn(features)
    (pattern,) = detector.records("http://a")
    assert (pattern.failure_type, pattern.occurrence_count, pattern.target) == ("queue_saturation", 3, "http://a")
    assert "requests_waiting high" in pattern.description
    assert pattern.mean_lead_seconds is not None
    assert 10 < pattern.mean_lead_seconds < 90


def test_the_graph_of_states_is_a_markov_chain() -> None:
    detector, extractor = StateGraph(), FeatureExtractor()
    for turn in range(2):
        for features in failure_after_a_ramp(extractor, 1e9 + 700.0 * turn):
            detector.learn(features)
    inner, out = detector.chain()
    assert np.allclose(inner.sum(axis=1) + out.sum(axis=1), 1.0)
    seconds = detector.hitting_seconds()
    worse = [value for state, value in seconds.items() if state.startswith("saturated")]
    assert min(worse) < min(value for state, value in seconds.items() if state.startswith("ok kv0 queue0"))
