"""Figures as a person reads them."""

from __future__ import annotations

__all__ = ["shortened", "size"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(number: float) -> str:
    """Bytes in binary units: ``512 B``, ``1.2 GiB``, ``24 GiB``."""
    value, unit = float(number), 0
    while abs(value) >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or abs(value) >= 10 else f"{value:.1f} {_UNITS[unit]}"


def shortened(text: str, most: int = 200) -> str:
    """A text of at most some characters, for what somebody else has named."""
    return text if len(text) <= most else f"{text[:most]}..."
