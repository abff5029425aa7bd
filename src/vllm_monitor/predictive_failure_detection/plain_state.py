"""States that come back from a store: taken when they have the form they should have, else left out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["array_of", "number_of"]

MOST_NUMBER = 1e30
"""Nothing that was learned is larger; sums and squares of what is smaller stay finite."""


def array_of(value: Any, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """A copy of an array of finite numbers in a shape; ``None`` when it is none."""
    try:
        found = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if found.shape == shape and (np.abs(found) <= MOST_NUMBER).all() else None


def number_of(value: Any) -> float | None:
    """A finite number; ``None`` when it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MOST_NUMBER:
        return None
    return float(value)
