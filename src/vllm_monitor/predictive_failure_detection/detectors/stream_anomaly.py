"""Conformal nearest-neighbour anomaly detection on one stream of numbers, on two time scales."""

from __future__ import annotations

import math
import threading
from collections import deque
from typing import Any

from vllm_monitor.predictive_failure_detection.detectors.conformal_rank import ConformalRank
from vllm_monitor.predictive_failure_detection.detectors.nearest_neighbour_distance import NearestNeighbourDistance
from vllm_monitor.predictive_failure_detection.detectors.recent_maximum import RecentMaximum

__all__ = ["StreamAnomaly"]

PROBATION_ROWS = 300
LEAST_PROBATION_ROWS = 50
NEIGHBOURS = 1
MEMORY_PROBATIONS = 8.0
SMOOTHING_PROBATIONS = 1 / 30
HOLD_PROBATIONS = 0.3
LARGEST = 1e150
"""Anything beyond counts as this, infinity too, so that sums of distances stay finite."""


class _Stream:
    """How surprising a number is after those that were learned, in nats."""

    def __init__(self, neighbours: int, memory: int, least: int) -> None:
        self._distance = NearestNeighbourDistance(neighbours, memory, least)
        self._rank = ConformalRank(memory)

    def surprise(self, number: float) -> float:
        strangeness = self._distance.of(number)
        return 0.0 if strangeness is None else self._rank.surprise(strangeness)

    def learn(self, number: float) -> None:
        strangeness = self._distance.of(number)
        if strangeness is not None:
            self._rank.add(strangeness)
        self._distance.add(number)

    def state(self) -> dict[str, list[float]]:
        return {"numbers": self._distance.state(), "strangeness": self._rank.state()}

    def restore(self, state: dict[str, list[float]]) -> None:
        self._distance.restore(state["numbers"])
        self._rank.restore(state["strangeness"])


class StreamAnomaly:
    """Says how unusual the next value of a stream is, given those before it, whatever its unit and distribution.

    The value itself and the mean of the last few are each compared with what was seen: strangeness is the distance to
    the nearest earlier numbers, and its rank among earlier strangenesses is a conformal p-value. The two are fused as
    the middle between the stronger and their average, so agreement counts, but either is enough. A score of a half
    means: so rare that one is expected in a hold. A value that is no more surprising than another one in the hold
    before it scores 0, so one anomaly is one alarm, unless it grows.

    On stationary noise a half is passed about twice in a thousand rows and 0.9 was not in 13,600, so the first suits
    a stream on which a miss is dear, the second one that calls somebody. A value never seen before on a stream of
    few distinct values, such as a constant one, is always an anomaly.

    Nothing but earlier values is used; there is no training apart from ``learn``. All lengths follow from
    ``probation``, the only argument that a stream should be given: about the time within which things on it repeat.

    All methods may be called from any thread. Memory is bounded: ``4 * memory * probation`` numbers, about 0.4 MB with
    the defaults, and a row costs about 15 microseconds: for some tens of fused figures, not for every series.

    Args:
        probation: Rows that are learned before anything is said; scores are 0 until then. The first half is only
            remembered, the second half shows how far apart usual values are.
        neighbours: How many nearest numbers count; an anomaly seen more often than this has become usual.
        memory: How far back is compared, in probations.
        smoothing: Rows of the mean, in probations.
        hold: Within how many rows one anomaly is one alarm, in probations.

    References:
        Burnaev and Ishimtsev, "Conformalized density- and distance-based anomaly detection in time-series data",
        arXiv:1608.04585, 2016. We use distances of single numbers instead of vectors of lags, two time scales, a
        p-value that goes on beyond the largest score seen, and a hold without a threshold.

    Example:
        >>> import random
        >>> noise = random.Random(1)
        >>> detector = StreamAnomaly(probation=100)
        >>> for second in range(1000):
        ...     detector.learn(noise.gauss(100.0, 5.0), float(second))
        >>> [round(detector.score(value, 1000.0), 2) for value in (101.0, 125.0, 200.0, math.nan)]
        [0.0, 0.99, 1.0, 0.0]
    """

    def __init__(
        self,
        probation: int = PROBATION_ROWS,
        *,
        neighbours: int = NEIGHBOURS,
        memory: float = MEMORY_PROBATIONS,
        smoothing: float = SMOOTHING_PROBATIONS,
        hold: float = HOLD_PROBATIONS,
    ) -> None:
        if probation < LEAST_PROBATION_ROWS:
            raise ValueError(f"probation is {probation} rows; at least {LEAST_PROBATION_ROWS} are needed")
        remembered = int(memory * probation)
        self._probation = probation
        self._hold = max(1, int(hold * probation))
        self._lock = threading.Lock()
        self._rows = 0
        self._last: deque[float] = deque(maxlen=max(2, int(smoothing * probation)))
        self._value = _Stream(neighbours, remembered, probation // 2)
        self._mean = _Stream(neighbours, remembered, probation // 2)
        self._held = RecentMaximum(self._hold)

    def score(self, value: float, timestamp: float) -> float:
        """How unusual the value would be as the next one, from 0 to 1; changes nothing.

        Args:
            value: In any unit, the same for the whole stream. NaN, a missing value, scores 0.
            timestamp: Unix seconds. Rows are the clock of this detector, so it makes no difference.
        """
        del timestamp
        with self._lock:
            if math.isnan(value) or self._rows < self._probation:
                return 0.0
            surprise = self._surprise(_clamped(value))
            held = self._held.value
            if held is not None and surprise <= held:
                return 0.0
            return 1.0 / (1.0 + self._hold * math.exp(-surprise))

    def learn(self, value: float, timestamp: float) -> None:
        """Take the value in as the latest; a missing one, NaN, is only a row that passes.

        Args:
            value: As in ``score``.
            timestamp: As in ``score``.
        """
        del timestamp
        with self._lock:
            self._rows = min(self._rows + 1, self._probation)
            if math.isnan(value):
                self._held.add(None)
                return
            number = _clamped(value)
            self._held.add(self._surprise(number))
            self._value.learn(number)
            self._last.append(number)
            if len(self._last) == self._last.maxlen:
                self._mean.learn(math.fsum(self._last) / len(self._last))

    def state(self) -> dict[str, Any]:
        """Everything that was learned, as lists and numbers."""
        with self._lock:
            return {
                "rows": self._rows,
                "last": list(self._last),
                "value": self._value.state(),
                "mean": self._mean.state(),
                "held": self._held.state(),
            }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` gave, of a detector with the same arguments, as if nothing had happened."""
        with self._lock:
            self._rows = int(state["rows"])
            self._last = deque(state["last"], maxlen=self._last.maxlen)
            self._value.restore(state["value"])
            self._mean.restore(state["mean"])
            self._held.restore(state["held"])

    def _surprise(self, number: float) -> float:
        surprises = [self._value.surprise(number)]
        if len(self._last) == self._last.maxlen:
            latest = [*self._last, number][1:]
            surprises.append(self._mean.surprise(math.fsum(latest) / len(latest)))
        return (max(surprises) + sum(surprises) / len(surprises)) / 2.0


def _clamped(value: float) -> float:
    return min(max(float(value), -LARGEST), LARGEST)
