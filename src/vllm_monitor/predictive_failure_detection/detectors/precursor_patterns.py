"""Precursor patterns: what past failures looked like before they happened, and how often that came to nothing.

A pattern is the mean of how unusual each figure was (its z) from ninety to ten seconds before a failure. A look is
compared by the cosine of the angle between the two; failures that looked alike share a pattern, and each pattern
counts its occurrences and its false alarms (nearest prototypes with counts, after Kohonen's learning vector
quantisation, "Self-Organizing Maps", 1995, chapter 6).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.predictive_failure_detection.features import SIGNALS, Features
from vllm_monitor.predictive_failure_detection.plain_state import array_of, number_of
from vllm_monitor.records import FAILURE_TYPES, FailurePattern

__all__ = ["PrecursorPatterns"]

STEP_SECONDS = 5.0
EARLIEST_SECONDS, LATEST_SECONDS = 90.0, 10.0
HORIZON_SECONDS = 300.0
SAME = 0.8
"""Cosine above which two looks are of one pattern."""
LEAST_LENGTH = 4.0
"""Length of a vector of z below which nothing stands out."""
MOST_PATTERNS = 24


@dataclass(slots=True)
class _Pattern:
    failure_type: str
    vector: NDArray[np.float64]
    first_seen: float
    last_seen: float
    occurrences: int = 1
    false_alarms: int = 0
    mean_lead_seconds: float = 0.0
    matched_since: float | None = None

    @property
    def precision(self) -> float:
        return self.occurrences / (self.occurrences + self.false_alarms + 3.0)


class PrecursorPatterns:
    """Learns a few patterns for each failure type."""

    name = "precursor_patterns"
    outputs = tuple(f"{kind}_looks_alike" for kind in FAILURE_TYPES)

    def __init__(self) -> None:
        self._looks: deque[tuple[float, NDArray[np.float64]]] = deque(maxlen=int(HORIZON_SECONDS / STEP_SECONDS))
        self._patterns: list[_Pattern] = []

    def score(self, features: Features) -> NDArray[np.float64]:
        """Likeness to the best pattern of each type (0 below 0.8), times how often it was right."""
        found = np.zeros(len(FAILURE_TYPES))
        for pattern, likeness in self._likenesses(features.z):
            place = FAILURE_TYPES.index(pattern.failure_type)
            worth = max(0.0, likeness - SAME) / (1.0 - SAME) * pattern.precision
            found[place] = max(found[place], worth)
        return found

    def _likenesses(self, z: NDArray[np.float64]) -> list[tuple[_Pattern, float]]:
        length = float(np.linalg.norm(z))
        if not self._patterns or length < LEAST_LENGTH:
            return []
        lengths = [max(float(np.linalg.norm(one.vector)), 1e-9) for one in self._patterns]
        return [(one, float(one.vector @ z) / (own * length)) for one, own in zip(self._patterns, lengths, strict=True)]

    def learn(self, features: Features) -> None:
        """Remember the look; on a failure, make or strengthen a pattern of what came before."""
        now = features.timestamp
        if self._looks and now < self._looks[-1][0]:
            self._looks.clear()
        for kind in features.failures:
            if kind in FAILURE_TYPES:
                self._happened(kind, now)
        if not self._looks or now - self._looks[-1][0] >= 0.99 * STEP_SECONDS:
            self._looks.append((now, features.z.copy()))
            self._match(now, features.z)

    def _match(self, now: float, z: NDArray[np.float64]) -> None:
        """Follow which patterns match, so that those that come to nothing are counted."""
        alike = {id(one) for one, likeness in self._likenesses(z) if likeness >= SAME}
        for pattern in self._patterns:
            if pattern.matched_since is None:
                if id(pattern) in alike:
                    pattern.matched_since = now
            elif now - pattern.matched_since > HORIZON_SECONDS:
                pattern.false_alarms += 1
                pattern.matched_since = now if id(pattern) in alike else None

    def _happened(self, kind: str, now: float) -> None:
        before = [z for at, z in self._looks if now - EARLIEST_SECONDS <= at <= now - LATEST_SECONDS]
        if not before:
            return
        vector = np.mean(before, axis=0)
        length = float(np.linalg.norm(vector))
        if length < LEAST_LENGTH:
            return  # it came out of the blue
        same = [one for one in self._patterns if one.failure_type == kind]
        nearest = max(same, key=lambda one: _cosine(one.vector, vector), default=None)
        if nearest is not None and _cosine(nearest.vector, vector) >= SAME:
            nearest.occurrences += 1
            nearest.last_seen = now
            nearest.vector = nearest.vector + (vector - nearest.vector) / min(nearest.occurrences, 10)
            if nearest.matched_since is not None:
                lead = now - nearest.matched_since
                nearest.mean_lead_seconds += (lead - nearest.mean_lead_seconds) / nearest.occurrences
            nearest.matched_since = None
            return
        if len(self._patterns) >= MOST_PATTERNS:
            self._patterns.remove(min(self._patterns, key=lambda one: (one.precision, one.last_seen)))
        self._patterns.append(_Pattern(kind, vector, now, now))

    def records(self, target: str) -> list[FailurePattern]:
        """The patterns as the store keeps them for a person and for other tools."""
        found = []
        for number, one in enumerate(self._patterns):
            strong = sorted(
                (place for place in range(len(SIGNALS)) if abs(one.vector[place]) >= 1.5),
                key=lambda place: -abs(one.vector[place]),
            )[:8]
            names = [f"{SIGNALS[place]} {'high' if one.vector[place] > 0 else 'low'}" for place in strong]
            found.append(
                FailurePattern(
                    timestamp=one.first_seen,
                    failure_type=one.failure_type,
                    description=f"before {one.failure_type}: {', '.join(names)}",
                    metric_conditions={SIGNALS[place]: {"z": float(one.vector[place])} for place in strong},
                    occurrence_count=one.occurrences,
                    false_alarm_count=one.false_alarms,
                    last_seen=one.last_seen,
                    mean_lead_seconds=one.mean_lead_seconds or None,
                    target=target,
                    pattern_id=f"{target} {one.failure_type} {one.first_seen!r} {number}",
                )
            )
        return found

    def state(self) -> dict[str, Any]:
        """See :class:`Detector`."""
        return {
            "looks_at": np.array([at for at, _ in self._looks]),
            "looks": np.array([z for _, z in self._looks]).reshape(len(self._looks), len(SIGNALS)),
            "patterns": [
                {
                    "failure_type": one.failure_type,
                    "vector": one.vector.copy(),
                    "first_seen": one.first_seen,
                    "last_seen": one.last_seen,
                    "occurrences": one.occurrences,
                    "false_alarms": one.false_alarms,
                    "mean_lead_seconds": one.mean_lead_seconds,
                    "matched_since": one.matched_since,
                }
                for one in self._patterns
            ],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """See :class:`Detector`."""
        times = state.get("looks_at")
        count = len(times) if isinstance(times, np.ndarray | list) else 0
        known_at, looks = array_of(times, (count,)), array_of(state.get("looks"), (count, len(SIGNALS)))
        if known_at is not None and looks is not None:
            self._looks.clear()
            self._looks.extend(zip(known_at.tolist(), looks, strict=True))
        kept = state.get("patterns")
        if isinstance(kept, list | tuple):
            restored = [_restored(one) for one in kept[:MOST_PATTERNS] if isinstance(one, Mapping)]
            self._patterns = [one for one in restored if one is not None]


def _restored(kept: Mapping[str, Any]) -> _Pattern | None:
    vector = array_of(kept.get("vector"), (len(SIGNALS),))
    first, last = number_of(kept.get("first_seen")), number_of(kept.get("last_seen"))
    occurrences, false_alarms = kept.get("occurrences"), kept.get("false_alarms")
    if vector is None or first is None or last is None or kept.get("failure_type") not in FAILURE_TYPES:
        return None
    if not isinstance(occurrences, int) or not isinstance(false_alarms, int) or occurrences < 1 or false_alarms < 0:
        return None
    lead = number_of(kept.get("mean_lead_seconds")) or 0.0
    since = number_of(kept.get("matched_since"))
    return _Pattern(str(kept["failure_type"]), vector, first, last, occurrences, false_alarms, lead, since)


def _cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(one @ other) / max(float(np.linalg.norm(one) * np.linalg.norm(other)), math.ulp(1.0))
