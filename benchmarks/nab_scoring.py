"""The scoring rule of the Numenta Anomaly Benchmark, standard profile, from its published description.

Reference: Lavin and Ahmad, "Evaluating Real-time Anomaly Detection Algorithms: the Numenta Anomaly Benchmark",
ICMLA 2015, section II. Each labelled window earns the reward of its earliest detection and costs 1 when it has none;
every detection outside costs up to 0.11, less shortly after a window. One threshold holds for the whole corpus, and
it is the best one: that is how the benchmark compares detectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DETECTED_WEIGHT = 1.0
MISSED_WEIGHT = 1.0
FALSE_ALARM_WEIGHT = 0.11
PROBATION_SHARE = 0.15
PROBATION_OF_AT_MOST_ROWS = 5000
NO_DETECTION = math.inf


@dataclass(frozen=True, slots=True)
class LabelledSeries:
    """One file of the corpus.

    Args:
        name: ``category/file``.
        timestamps: Seconds.
        values: As many.
        windows: First and last row of each anomaly window, in order.
    """

    name: str
    timestamps: Floats
    values: Floats
    windows: Sequence[tuple[int, int]]

    @property
    def category(self) -> str:
        return self.name.split("/")[0]

    @property
    def probation(self) -> int:
        """How many first rows are for learning and are not scored."""
        return int(PROBATION_SHARE * min(len(self.values), PROBATION_OF_AT_MOST_ROWS))


@dataclass(frozen=True, slots=True)
class Steps:
    """By how much the score changes when the threshold sinks to a row's score.

    Args:
        at: Scores of the rows that change anything.
        by: The change that each brings.
        windows: Windows in these rows; with no detection at all, each costs ``MISSED_WEIGHT``.
    """

    at: Floats
    by: Floats
    windows: int

    def score(self, threshold: float) -> float:
        """The raw score when every row of at least this score is a detection."""
        return float(self.by[self.at >= threshold].sum()) - MISSED_WEIGHT * self.windows

    def best(self) -> tuple[float, float]:
        """The threshold with the highest raw score, and that score."""
        if not len(self.at):
            return NO_DETECTION, self.score(NO_DETECTION)
        order = np.argsort(-self.at, kind="stable")
        at, total = self.at[order], np.cumsum(self.by[order])
        is_last_of_its_score = np.append(at[1:] != at[:-1], True)
        at, total = at[is_last_of_its_score], total[is_last_of_its_score]
        best = int(np.argmax(total))
        if total[best] <= 0.0:
            return NO_DETECTION, self.score(NO_DETECTION)
        return float(at[best]), float(total[best]) - MISSED_WEIGHT * self.windows


def pooled(parts: Iterable[Steps]) -> Steps:
    """The steps of several files together."""
    several = list(parts)
    nothing = np.empty(0)
    return Steps(
        np.concatenate([nothing, *(part.at for part in several)]),
        np.concatenate([nothing, *(part.by for part in several)]),
        sum(part.windows for part in several),
    )


def scaled_sigmoid(position: float) -> float:
    """Near 1 at -1 (the left edge of a window), 0 at its right edge, near -1 a window's width later."""
    return 2.0 / (1.0 + math.exp(5.0 * position)) - 1.0 if position <= 3.0 else -1.0


def rewards(series: LabelledSeries) -> Floats:
    """What a detection at each row is worth: positive in a window, negative outside."""
    worth = np.full(len(series.values), -FALSE_ALARM_WEIGHT)
    at_left_edge = scaled_sigmoid(-1.0)
    starts = [first for first, _ in series.windows[1:]]
    for (first, last), end in zip(series.windows, [*starts, len(worth)], strict=False):
        width = last - first + 1
        for row in range(first, last + 1):
            worth[row] = DETECTED_WEIGHT * scaled_sigmoid(-(last - row + 1) / width) / at_left_edge
        for row in range(last + 1, end):
            worth[row] = FALSE_ALARM_WEIGHT * scaled_sigmoid((row - last) / max(width - 1, 1))
    return worth


def steps(series: LabelledSeries, scores: Floats) -> Steps:
    """What the scores of one file are worth at every threshold."""
    worth = rewards(series)
    is_counted = np.arange(len(worth)) >= series.probation
    is_outside = is_counted.copy()
    at, by = [], []
    for first, last in series.windows:
        is_outside[first : last + 1] = False
        rows = np.flatnonzero(is_counted[first : last + 1]) + first
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        earliest_so_far = np.maximum.accumulate(np.append(-MISSED_WEIGHT, worth[rows]))
        gained = np.diff(earliest_so_far)
        at.append(scores[rows][gained > 0.0])
        by.append(gained[gained > 0.0])
    at.append(scores[is_outside])
    by.append(worth[is_outside])
    return Steps(np.concatenate(at), np.concatenate(by), len(series.windows))


def normalised(raw: float, windows: int) -> float:
    """0 for no detection at all, 100 for every window detected at its first row and nothing else."""
    worst = -MISSED_WEIGHT * windows
    return 100.0 * (raw - worst) / (DETECTED_WEIGHT * windows - worst)


def standard_score(parts: Iterable[Steps]) -> float:
    """The normalised score of the whole corpus at its best threshold."""
    corpus = pooled(parts)
    return normalised(corpus.best()[1], corpus.windows)
