"""Conformal anomalies: two streams of a server against their own past, see :class:`StreamAnomaly`.

One stream is how unusual all signals are together, the other the time between tokens, which every server has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.predictive_failure_detection.detectors.stream_anomaly import StreamAnomaly
from vllm_monitor.predictive_failure_detection.features import SIGNALS, Features
from vllm_monitor.predictive_failure_detection.plain_state import number_of

__all__ = ["ConformalAnomaly"]

STEP_SECONDS = 5.0
PROBATION_ROWS = 120
"""Ten minutes of looks."""
MEMORY_SECONDS = 60.0
"""An anomaly is told once, when it begins; the score fades with this time constant."""
_BETWEEN = SIGNALS.index("inter_token_latency_p50_seconds")


class ConformalAnomaly:
    """Anomalies of the last minute."""

    name = "conformal_anomaly"
    outputs = ("all_signals_anomaly", "between_tokens_anomaly")

    def __init__(self) -> None:
        self._streams = tuple(StreamAnomaly(PROBATION_ROWS) for _ in self.outputs)
        self._held = np.zeros(len(self.outputs))
        self._at: float | None = None

    def score(self, features: Features) -> NDArray[np.float64]:
        """1 at a value that was never seen before, fading."""
        now = features.timestamp
        if not self._is_due(now):
            return self._faded(now)
        found = [stream.score(value, now) for stream, value in zip(self._streams, _values(features), strict=True)]
        return np.asarray(np.maximum(self._faded(now), np.array(found)))

    def learn(self, features: Features) -> None:
        """Take in a look every five seconds."""
        now = features.timestamp
        if not self._is_due(now):
            return
        self._held, self._at = self.score(features), now
        for stream, value in zip(self._streams, _values(features), strict=True):
            stream.learn(value, now)

    def _is_due(self, now: float) -> bool:
        return self._at is None or not 0.0 <= now - self._at < 0.99 * STEP_SECONDS

    def _faded(self, now: float) -> NDArray[np.float64]:
        seconds = 0.0 if self._at is None else max(0.0, now - self._at)
        return np.asarray(self._held * math.exp(-seconds / MEMORY_SECONDS))

    def state(self) -> dict[str, Any]:
        """See :class:`Detector`."""
        return {
            "held": self._held.tolist(),
            "at": self._at,
            "streams": [stream.state() for stream in self._streams],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """See :class:`Detector`."""
        streams, held = state.get("streams"), state.get("held")
        if not isinstance(streams, list) or not isinstance(held, list) or len(streams) != len(self._streams):
            return
        restored = tuple(StreamAnomaly(PROBATION_ROWS) for _ in self.outputs)
        try:
            for stream, kept in zip(restored, streams, strict=True):
                stream.restore(kept)
            values = np.array([float(one) for one in held])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            return  # not a state of ours
        if values.shape == self._held.shape and ((values >= 0) & (values <= 1)).all():
            self._streams, self._held, self._at = restored, values, number_of(state.get("at"))


def _values(features: Features) -> tuple[float, float]:
    together = float(np.sqrt(np.mean(features.z**2)))
    return together, float(features.scaled[_BETWEEN])
