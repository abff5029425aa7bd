"""Recalibration: whether a stated 70 % happens seven times in ten, and what to state instead if it does not.

Platt's scaling (Platt, "Probabilistic outputs for support vector machines", 1999) learned online, one step with each
look of which it is known what followed, drawn back to "as stated" so that few looks change little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vllm_monitor.predictive_failure_detection.hazards import logit
from vllm_monitor.predictive_failure_detection.plain_state import number_of

__all__ = ["Recalibration"]

LEARNING_RATE = 0.01
PULL = 0.001


class Recalibration:
    """Of one failure type. Not thread-safe."""

    def __init__(self) -> None:
        self._scale, self._shift = 1.0, 0.0

    def probability(self, stated: float) -> float:
        """What to state instead."""
        return 1.0 / (1.0 + math.exp(-(self._scale * logit(stated) + self._shift)))

    def learn(self, stated: float, *, happened: bool) -> None:
        """What followed a look of which a probability was stated."""
        error = float(happened) - self.probability(stated)
        self._scale += LEARNING_RATE * error * logit(stated) / 4.0 + PULL * (1.0 - self._scale)
        self._shift += LEARNING_RATE * error - PULL * self._shift
        self._scale, self._shift = min(max(self._scale, 0.3), 3.0), min(max(self._shift, -3.0), 3.0)

    def state(self) -> dict[str, Any]:
        """As values that the store keeps."""
        return {"scale": self._scale, "shift": self._shift}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; what makes no sense is left out."""
        scale, shift = number_of(state.get("scale")), number_of(state.get("shift"))
        if scale is not None and shift is not None and 0.3 <= scale <= 3.0 and abs(shift) <= 3.0:
            self._scale, self._shift = scale, shift
