"""Numbers as people read them at night: short, with a unit, and ``-`` for what is not known.

Every function takes ``None`` and NaN for "not known" and answers :data:`UNKNOWN`, never a zero. Infinity is
``inf``. Negative values keep their sign. No result is longer than :data:`MAX_WIDTH` characters, all are ASCII.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, tzinfo

__all__ = [
    "MAX_WIDTH",
    "UNKNOWN",
    "byte_count",
    "clock_time",
    "count",
    "duration",
    "iso_time",
    "latency",
    "percent",
    "rate",
    "ratio",
]

UNKNOWN = "-"
MAX_WIDTH = 10

_MINUTE = 60
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_DECIMAL_SUFFIXES = ("", "k", "M", "G", "T", "P")


def duration(seconds: float | None) -> str:
    """An age or a span, such as ``0.4 s``, ``13 s``, ``2 m 13 s``, ``1 h 02 m`` or ``3 d 04 h``."""
    return _signed(seconds, _duration)


def latency(seconds: float | None) -> str:
    """A latency in three significant digits, such as ``850 us``, ``12.3 ms`` or ``1.24 s``."""
    return _signed(seconds, _latency)


def byte_count(number: float | None) -> str:
    """Bytes in binary units, such as ``512 B`` or ``1.2 GiB``."""
    return _signed(number, _byte_count)


def rate(per_second: float | None) -> str:
    """Something per second without its unit: ``0``, ``0.25``, ``4.2``, ``412``, ``12.3k``."""
    return _signed(per_second, _decimal)


def count(number: float | None) -> str:
    """A number of things: whole up to six digits with thousands separated, then ``1.2M``."""
    return _signed(number, _count)


def ratio(part: float | None) -> str:
    """A share from 0 to 1 as a percentage; a share that is small but not nothing is ``<0.1 %``."""
    return _signed(part, lambda value: _percent(value * 100.0))


def percent(value: float | None) -> str:
    """A percentage from 0 to 100 as it is, such as ``93.1 %``."""
    return _signed(value, _percent)


def clock_time(timestamp: float | None, *, zone: tzinfo | None = None) -> str:
    """The time of day of a unix timestamp, ``03:12:45``, in ``zone`` or the zone of the host."""
    moment = _moment(timestamp, zone)
    return UNKNOWN if moment is None else moment.strftime("%H:%M:%S")


def iso_time(timestamp: float | None, *, zone: tzinfo | None = None) -> str:
    """Date, time and offset of a unix timestamp for log lines, ``2026-03-04T03:12:45+01:00``."""
    moment = _moment(timestamp, zone)
    return UNKNOWN if moment is None else moment.isoformat(timespec="seconds")


def _moment(timestamp: float | None, zone: tzinfo | None) -> datetime | None:
    if timestamp is None or not math.isfinite(timestamp):
        return None
    try:
        return datetime.fromtimestamp(timestamp, tz=UTC).astimezone(zone)
    except (OverflowError, ValueError, OSError):  # a year the platform cannot name
        return None


def _signed(value: float | None, positive: Callable[[float], str]) -> str:
    if value is None or math.isnan(value):
        return UNKNOWN
    sign = "-" if value < 0 else ""
    if math.isinf(value):
        return f"{sign}inf"
    return sign + positive(abs(value))


def _duration(seconds: float) -> str:
    if seconds < 9.95:  # what would be shown as 10.0 belongs to the next form, likewise below
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} m {whole % _MINUTE:02d} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02d} m"
    if whole < 1000 * _DAY:
        return f"{whole // _DAY} d {whole % _DAY // _HOUR:02d} h"
    return f"{_decimal(whole / _DAY)} d"


def _latency(seconds: float) -> str:
    if seconds == 0:
        return "0 s"
    for scale, unit in ((1e6, "us"), (1e3, "ms"), (1.0, "s")):
        scaled = seconds * scale
        if scaled < (999.5 if unit != "s" else 9999.5):
            return "<1 us" if scaled < 0.5 and unit == "us" else f"{_three_digits(scaled)} {unit}"
    return _duration(seconds)


def _byte_count(number: float) -> str:
    for unit in _BYTE_UNITS:
        if number < 1023.5:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 99.95 else f"{number:.1f} {unit}"
        number /= 1024.0
    return f"{number:.0e} ZiB" if number >= 1023.5 else f"{number:.0f} ZiB"


def _decimal(value: float) -> str:
    if 0 < value < 0.005:
        return "<0.01"
    for suffix in _DECIMAL_SUFFIXES:
        if value < 999.5:
            return _three_digits(value) + suffix
        value /= 1000.0
    return f"{value * 1e18:.1e}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value < 999_999.5 else _decimal(value)


def _percent(value: float) -> str:
    if 0 < value < 0.1:
        return "<0.1 %"
    if value < 99.95:
        return f"{value:.1f} %"
    return f"{value:.0f} %" if value < 99_999.5 else ">99999 %"


def _three_digits(value: float) -> str:
    if value < 9.995:
        text = f"{value:.2f}"
    elif value < 99.95:
        text = f"{value:.1f}"
    else:
        return f"{value:.0f}"
    return text.rstrip("0").rstrip(".")
