"""The anomaly benchmark's scoring: its scale, and what it rewards."""

from __future__ import annotations

import numpy as np
import pytest

from nab import leave_one_category_out
from nab_scoring import LabelledSeries, normalised, pooled, rewards, scaled_sigmoid, steps

ROWS = 1_000
WINDOWS = [(400, 499), (700, 799)]


def series(windows: list[tuple[int, int]] | None = None, name: str = "made/one.csv") -> LabelledSeries:
    return LabelledSeries(name, np.arange(ROWS, dtype=float), np.zeros(ROWS), WINDOWS if windows is None else windows)


def scored(*detections: int) -> float:
    """The normalised score when exactly these rows are detections."""
    scores = np.zeros(ROWS)
    scores[list(detections)] = 1.0
    part = steps(series(), scores)
    return normalised(part.score(1.0), part.windows)


def test_no_detection_is_0_and_the_first_rows_of_all_windows_are_100() -> None:
    assert scored() == 0.0
    assert scored(400, 700) == pytest.approx(100.0)


def test_the_best_threshold_of_a_detector_that_says_nothing_useful_is_no_detection() -> None:
    useless = steps(series(), np.where(np.arange(ROWS) == 300, 1.0, 0.0))
    assert useless.score(1.0) < -2.0
    assert normalised(useless.best()[1], useless.windows) >= 0.0


def test_early_is_worth_more_than_late_and_late_more_than_never() -> None:
    assert scored(400) > scored(430) > scored(499) > scored()
    assert scored(430) > 45.0


def test_only_the_earliest_detection_of_a_window_counts() -> None:
    assert scored(430, 431, 480) == scored(430)


def test_a_false_alarm_costs_more_the_further_it_lies_behind_a_window() -> None:
    assert scored(430) > scored(430, 510) > scored(430, 560) > scored(430, 690)
    assert scored(430) - scored(430, 300) == pytest.approx(100.0 * 0.11 / 4)


def test_every_false_alarm_costs() -> None:
    assert scored(430, 300, 301) - scored(430) == pytest.approx(2 * (scored(430, 300) - scored(430)))


def test_the_probation_is_not_scored() -> None:
    assert series().probation == 150
    assert scored(430, 10, 149) == scored(430)
    assert scored(430, 150) < scored(430)


def test_the_probation_is_at_most_750_rows() -> None:
    rows = 22_695
    long = LabelledSeries("made/long.csv", np.arange(rows, dtype=float), np.zeros(rows), [])
    assert long.probation == 750


def test_the_sigmoid_is_that_of_the_paper() -> None:
    assert scaled_sigmoid(-1.0) == pytest.approx(0.98661, abs=1e-5)
    assert scaled_sigmoid(0.0) == 0.0
    assert scaled_sigmoid(1.0) == pytest.approx(-0.98661, abs=1e-5)
    assert scaled_sigmoid(3.1) == -1.0


def test_rewards_change_sign_at_the_edges_of_windows() -> None:
    worth = rewards(series())
    assert (worth[400:500] > 0.0).all()
    assert (worth[500:700] < 0.0).all()
    assert worth[:400] == pytest.approx(-0.11)
    assert worth[400] == pytest.approx(1.0)


def test_the_threshold_is_chosen_for_the_whole_corpus_at_once() -> None:
    one, two = np.zeros(ROWS), np.zeros(ROWS)
    one[400], two[400], two[300] = 0.5, 0.9, 0.5
    parts = [steps(series(), one), steps(series(name="other/two.csv"), two)]
    corpus = pooled(parts)
    threshold, raw = corpus.best()
    assert threshold == 0.5
    assert raw == pytest.approx(-4.0 + 2 * 2.0 - 0.11)
    assert raw == pytest.approx(sum(part.score(threshold) for part in parts))


def test_the_best_threshold_is_found_by_trying_all() -> None:
    scores = np.round(np.random.default_rng(1).random(ROWS), 2)
    part = steps(series(), scores)
    by_hand = max(part.score(threshold) for threshold in np.unique(scores))
    assert part.best()[1] == pytest.approx(max(by_hand, -2.0))


def test_what_is_left_out_has_no_say_in_its_own_threshold() -> None:
    one, two = np.zeros(ROWS), np.zeros(ROWS)
    one[400], two[400] = 0.9, 0.5
    corpus = [series(), series(name="other/two.csv")]
    parts = [steps(corpus[0], one), steps(corpus[1], two)]
    assert leave_one_category_out(corpus, [parts]) == pytest.approx(25.0)  # 0.9 misses the second, 0.5 finds the first


def test_what_is_left_out_has_no_say_in_its_own_configuration() -> None:
    found, missed = np.zeros(ROWS), np.zeros(ROWS)
    found[[400, 700]] = 1.0
    corpus = [series(), series(name="other/two.csv")]
    only_first = [steps(corpus[0], found), steps(corpus[1], missed)]
    only_second = [steps(corpus[0], missed), steps(corpus[1], found)]
    assert leave_one_category_out(corpus, [only_first, only_second]) == pytest.approx(0.0)
    assert leave_one_category_out(corpus, [[only_first[0], only_second[1]]]) == pytest.approx(100.0)
