"""The door of a detector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.predictive_failure_detection.features import Features

__all__ = ["Detector"]


class Detector(Protocol):
    """Judges one server, tick by tick. Not thread-safe: one owner.

    What every implementation holds to: :meth:`score` changes nothing; the same features in the same order give the
    same scores; memory is bounded whatever it is given; features may appear and vanish at any tick; a detector
    that was restored from the state of another goes on exactly as that one.
    """

    @property
    def name(self) -> str:
        """The method's name, in snake_case."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """A name for each number of :meth:`score`."""
        ...

    def score(self, features: Features) -> NDArray[np.float64]:
        """A number from 0 (nothing speaks for it, or it is not known) to 1 for each output."""
        ...

    def learn(self, features: Features) -> None:
        """Take in the features of this tick, after they were scored."""
        ...

    def state(self) -> dict[str, Any]:
        """All that was learned, as values that the store keeps."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; what makes no sense in it is left out."""
        ...
