"""A series in one line of characters."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["sparkline"]

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = "_.:-=+*#@"
_GAP = " "


def sparkline(values: Sequence[float], width: int, *, top: float | None = None, unicode: bool = True) -> str:
    """Draw the last ``width`` values, one character each, the newest at the right.

    The scale begins at zero. The lowest character means exactly zero (or less): whatever is more than nothing
    stands higher, because "a little" and "none at all" are different news.

    Args:
        values: Oldest first. NaN is a gap and drawn as a blank; infinity has full height.
        width: Cells to fill; a shorter series is padded with blanks at the left.
        top: The value of full height; the largest finite value shown, when not given.
        unicode: Whether the terminal can show block characters.

    Returns:
        Exactly ``width`` characters (none when ``width`` is not positive).
    """
    if width <= 0:
        return ""
    levels = _BLOCKS if unicode else _ASCII
    shown = values[-width:]
    if top is None:
        top = max((value for value in shown if math.isfinite(value)), default=0.0)
    return "".join(_character(value, top, levels) for value in shown).rjust(width, _GAP)


def _character(value: float, top: float, levels: str) -> str:
    if math.isnan(value):
        return _GAP
    if value <= 0:
        return levels[0]
    highest = len(levels) - 1
    if value >= top:
        return levels[highest]
    return levels[max(1, min(highest, math.ceil(value / top * highest)))]
