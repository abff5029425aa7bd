"""Gaps in the heartbeat: an engine that stutters may soon stand still.

A gap is a time between two tokens far beyond the usual, told by the histogram even when it fell between two scrapes,
or progress that is late now.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.predictive_failure_detection.features import Features
from vllm_monitor.predictive_failure_detection.plain_state import number_of

__all__ = ["HeartbeatGaps", "age_on_page"]

GAP_SECONDS = 0.9
MEMORY_SECONDS = 150.0
"""Time constant over which stutters are remembered."""


def age_on_page(features: Features) -> float:
    """How old the newest sign of progress was when the newest page was made: that no page comes is no sign of it."""
    return max(0.0, features.value("progress_age_seconds", 0.0) - features.facts.get("page_age_seconds", 0.0))


class HeartbeatGaps:
    """Share of the last minutes in which the engine stuttered, and how late its newest sign of progress is."""

    name = "heartbeat_gaps"
    outputs = ("stuttering", "stuttered_lately", "gap_length", "progress_late")

    def __init__(self) -> None:
        self._share = 0.0
        self._at: float | None = None

    def score(self, features: Features) -> NDArray[np.float64]:
        """``gap_length`` is 0.5 at three seconds, ``progress_late`` at two and a half."""
        longest = features.value("inter_token_latency_longest_seconds", 0.0)
        running = features.value("requests_running", 0.0)
        late = age_on_page(features) / 5.0 if running > 0 else 0.0
        found = [float(longest >= GAP_SECONDS), self._next(features), longest / (longest + 3.0), late]
        return np.asarray(np.clip(np.nan_to_num(np.array(found)), 0.0, 1.0))

    def _next(self, features: Features) -> float:
        seconds = 0.0 if self._at is None else min(60.0, max(0.0, features.timestamp - self._at))
        keep = math.exp(-seconds / MEMORY_SECONDS)
        has_gap = features.value("inter_token_latency_longest_seconds", 0.0) >= GAP_SECONDS
        return self._share * keep + (1.0 - keep) * has_gap

    def learn(self, features: Features) -> None:
        """Add this tick."""
        self._share = self._next(features)
        self._at = features.timestamp

    def state(self) -> dict[str, Any]:
        """See :class:`Detector`."""
        return {"share": self._share, "at": self._at}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See :class:`Detector`."""
        share = number_of(state.get("share"))
        if share is not None and 0.0 <= share <= 1.0:
            self._share, self._at = share, number_of(state.get("at"))
