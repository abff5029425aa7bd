"""The anomaly detector of one stream: pure scoring, bounded memory, exact restarts, and what it sees."""

from __future__ import annotations

import json
import math
import threading

import numpy as np
import pytest

from vllm_monitor.predictive_failure_detection.detectors.conformal_rank import ConformalRank
from vllm_monitor.predictive_failure_detection.detectors.nearest_neighbour_distance import NearestNeighbourDistance
from vllm_monitor.predictive_failure_detection.detectors.recent_maximum import RecentMaximum
from vllm_monitor.predictive_failure_detection.detectors.stream_anomaly import StreamAnomaly

ALARM = 0.9


def noise(rows: int, seed: int = 1) -> list[float]:
    values: list[float] = np.random.default_rng(seed).normal(100.0, 5.0, rows).tolist()
    return values


def run(detector: StreamAnomaly, values: list[float], starts_at: int = 0) -> list[float]:
    scores = []
    for row, value in enumerate(values, starts_at):
        scores.append(detector.score(value, float(row)))
        detector.learn(value, float(row))
    return scores


def stored_numbers(detector: StreamAnomaly) -> int:
    return len(json.dumps(detector.state()).split(","))


def test_scoring_changes_nothing_and_asks_the_same_again() -> None:
    detector = StreamAnomaly(probation=100)
    run(detector, noise(400))
    before = json.dumps(detector.state())
    first = [detector.score(value, 400.0) for value in (80.0, 100.0, 300.0, math.nan, math.inf)]
    assert [detector.score(value, 7.0) for value in (80.0, 100.0, 300.0, math.nan, math.inf)] == first
    assert json.dumps(detector.state()) == before


def test_scores_do_not_depend_on_what_comes_later() -> None:
    values = noise(600)
    whole = run(StreamAnomaly(probation=100), values)
    assert run(StreamAnomaly(probation=100), values[:350]) == whole[:350]


def test_scores_lie_between_0_and_1_and_say_nothing_before_the_probation_is_over() -> None:
    scores = run(StreamAnomaly(probation=100), [*noise(99), 1e9, *noise(300, seed=2)])
    assert set(scores[:100]) == {0.0}
    assert all(0.0 <= score <= 1.0 for score in scores)


def test_memory_is_bounded() -> None:
    detector = StreamAnomaly(probation=50)
    run(detector, noise(5_000))
    after_some = stored_numbers(detector)
    run(detector, noise(20_000, seed=3))
    assert stored_numbers(detector) <= after_some + 20
    assert after_some < 4 * 8 * 50 + 100


@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324])
def test_strange_values_are_survived(strange: float) -> None:
    detector = StreamAnomaly(probation=100)
    run(detector, noise(400))
    scores = run(detector, [strange] * 30 + noise(200, seed=4), 400)
    assert all(0.0 <= score <= 1.0 for score in scores)
    assert all(score == 0.0 for score in scores[:30] if math.isnan(strange))
    run(detector, noise(600, seed=5))
    assert detector.score(1000.0, 2000.0) > ALARM
    json.loads(json.dumps(detector.state(), allow_nan=False))


def test_infinity_is_an_anomaly() -> None:
    detector = StreamAnomaly(probation=100)
    run(detector, noise(400))
    assert detector.score(math.inf, 400.0) > ALARM
    assert detector.score(-math.inf, 400.0) > ALARM


def test_a_stream_of_missing_values_is_silent() -> None:
    assert set(run(StreamAnomaly(probation=100), [math.nan] * 500)) == {0.0}


@pytest.mark.parametrize("cut", [0, 1, 40, 99, 100, 101, 450, 873])
def test_a_restart_in_the_middle_changes_nothing(cut: int) -> None:
    values = noise(900)
    values[300] = 180.0
    values[500:520] = [math.nan] * 20
    values[600:] = [value + 40.0 for value in values[600:]]
    whole = run(StreamAnomaly(probation=100, memory=4.0), values)
    before, after = StreamAnomaly(probation=100, memory=4.0), StreamAnomaly(probation=100, memory=4.0)
    scores = run(before, values[:cut])
    run(after, noise(200, seed=9))  # restoring forgets what was there
    after.restore(json.loads(json.dumps(before.state())))
    assert scores + run(after, values[cut:], cut) == whole
    full = StreamAnomaly(probation=100, memory=4.0)
    run(full, values)
    assert after.state() == full.state()


def test_a_spike_is_seen_at_once_and_noise_is_not() -> None:
    values = noise(2_000)
    values[1_500] = 160.0
    scores = run(StreamAnomaly(), values)
    assert [row for row, score in enumerate(scores) if score > ALARM] == [1_500]


def test_a_small_level_shift_is_seen_in_the_mean() -> None:
    values = noise(2_000)
    values[1_500:] = [value + 15.0 for value in values[1_500:]]
    scores = run(StreamAnomaly(), values)
    alarms = [row for row, score in enumerate(scores) if score > ALARM]
    assert alarms
    assert all(1_500 <= row < 1_530 for row in alarms)


@pytest.mark.parametrize("seed", range(5))
def test_stationary_noise_is_silent(seed: int) -> None:
    assert max(run(StreamAnomaly(), noise(2_000, seed))) <= ALARM


def test_what_returns_is_usual_and_what_lies_between_two_levels_is_not() -> None:
    generator = np.random.default_rng(6)
    values = np.where(np.arange(2_000) // 40 % 2 == 0, 10.0, 50.0) + generator.normal(0.0, 0.5, 2_000)
    detector = StreamAnomaly()
    scores = run(detector, values.tolist())
    assert max(scores[600:]) <= ALARM
    assert detector.score(30.0, 2_000.0) > detector.score(10.0, 2_000.0)
    assert detector.score(30.0, 2_000.0) > 0.9


def test_one_anomaly_is_one_alarm_unless_it_grows() -> None:
    detector = StreamAnomaly(probation=100)
    run(detector, noise(400))
    scores = run(detector, [200.0, 199.0, 200.0, 400.0, 300.0], 400)
    assert scores[0] > ALARM
    assert scores[1:3] == [0.0, 0.0]
    assert scores[4] == 0.0


def test_a_constant_stream_is_silent_until_it_moves() -> None:
    detector = StreamAnomaly(probation=100)
    assert max(run(detector, [3.0] * 500)) == 0.0
    assert detector.score(3.5, 500.0) > ALARM


def test_units_make_no_difference() -> None:
    values = noise(600)
    in_other_unit = [value * 1024.0 for value in values]  # a power of two, so that rounding is the same
    assert run(StreamAnomaly(probation=100), values) == run(StreamAnomaly(probation=100), in_other_unit)


def test_threads_may_share_it() -> None:
    detector = StreamAnomaly(probation=50)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            run(detector, noise(1_000, seed))
            detector.restore(detector.state())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert 0.0 <= detector.score(100.0, 0.0) <= 1.0


def test_a_probation_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 50"):
        StreamAnomaly(probation=10)


def test_the_nearest_neighbours_are_those_of_a_full_search() -> None:
    generator = np.random.default_rng(7)
    distance = NearestNeighbourDistance(neighbours=4, capacity=50, least=10)
    numbers = np.round(generator.normal(0.0, 3.0, 300), 1)
    for row, number in enumerate(numbers.tolist()):
        expected = np.sort(np.abs(numbers[max(0, row - 50) : row] - number))[:4].sum() if row >= 10 else None
        found = distance.of(number)
        assert found == (None if expected is None else pytest.approx(expected))
        distance.add(number)


def test_a_rank_goes_on_beyond_the_largest_score() -> None:
    rank = ConformalRank(capacity=100)
    assert rank.surprise(5.0) == 0.0
    for score in range(1, 101):
        rank.add(float(score))
    surprises = [rank.surprise(float(score)) for score in (0, 50, 100, 101, 1000, 10**9)]
    assert surprises == sorted(surprises)
    assert rank.surprise(1000.0) == pytest.approx(math.log(101) + math.log(10))


def test_the_recent_maximum_is_that_of_the_window() -> None:
    generator = np.random.default_rng(8)
    numbers = generator.integers(0, 20, 300).astype(float).tolist()
    recent = RecentMaximum(rows=15)
    for row, number in enumerate(numbers):
        recent.add(number)
        assert recent.value == max(numbers[max(0, row - 14) : row + 1])
    for _ in range(15):
        recent.add(None)
    assert recent.value is None
