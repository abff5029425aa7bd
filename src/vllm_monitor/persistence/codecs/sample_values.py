"""Which numbers a sample may hold, and how their type survives a store of float64.

A sample is stored as the eight bytes of a float64 and one byte for its Python type: 0 float, 1 int, 2 bool,
3 Decimal, 4 Fraction. A number that float64 cannot hold exactly is refused at the door.
"""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

from vllm_monitor.errors import ValueNotStorableError
from vllm_monitor.persistence.codecs.arguments import shown

__all__ = [
    "FLOAT_CODE",
    "LATEST_SECONDS",
    "TYPE_OF_CODE",
    "SampleValue",
    "code_of",
    "from_float",
    "milliseconds",
    "to_sample_value",
]

SampleValue = float | int | bool | Decimal | Fraction

FLOAT_CODE = 0
TYPE_OF_CODE: tuple[type, ...] = (float, int, bool, Decimal, Fraction)
_CODE_OF_TYPE = {kind: code for code, kind in enumerate(TYPE_OF_CODE)}
# Milliseconds up to here convert to seconds and back without loss (the year 73327).
# The calendar of Python and of most tools: the years 1 to 9999.
_EARLIEST_MILLISECONDS = -62_135_596_800_000
_LATEST_MILLISECONDS = 253_402_300_799_999
LATEST_SECONDS = _LATEST_MILLISECONDS / 1000
"""Times of samples lie within this many seconds of 1970."""


def to_sample_value(value: Any) -> SampleValue:
    """The plain Python number equal to ``value``; numpy scalars and subclasses lose their type here.

    Raises:
        ValueNotStorableError: When it is no real number, or float64 cannot hold it exactly.
    """
    if type(value) not in _CODE_OF_TYPE:
        value = _plain_number(value)
    if type(value) is float or type(value) is bool:
        return value
    if isinstance(value, Decimal) and not value.is_finite():
        return float("nan") if value.is_nan() else float(value)
    try:
        plain = type(value)(float(value))
    except OverflowError:
        plain = None
    if plain != value:
        raise ValueNotStorableError(
            f"{type(value).__name__} {shown(value)} is not exactly a float64",
            hint="Round it with float(...) first, if losing its last digits is acceptable.",
        )
    return plain  # type: ignore[no-any-return]  # one of TYPE_OF_CODE by now; a Decimal as the store gives it back


def _plain_number(value: Any) -> Any:
    """A subclass or a numpy scalar as float, int, bool, Decimal or Fraction."""
    kinds: tuple[type[Any], ...] = (int, float, Decimal, Fraction)
    for kind in kinds:
        if isinstance(value, kind):
            return kind(value)
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        plain = value.item()
        if isinstance(plain, (bool, int, float)):
            return plain
        if value.dtype.kind == "f":  # longdouble, which item() leaves alone
            as_float = float(value)
            if as_float == value or math.isnan(as_float):
                return as_float
    raise ValueNotStorableError(
        f"a sample cannot be {shown(value)} of type {type(value).__name__}",
        hint="Pass a real number: a float, int, bool, numpy scalar, or an exact Decimal or Fraction.",
    )


def code_of(value: SampleValue) -> int:
    """The type byte of a value that passed :func:`to_sample_value`."""
    return _CODE_OF_TYPE[type(value)]


def from_float(value: float, code: int) -> SampleValue:
    """The sample as it came in, from its float64 and its type byte."""
    if code == FLOAT_CODE:
        return value
    return TYPE_OF_CODE[code](value)  # type: ignore[no-any-return]  # one of SampleValue


def milliseconds(timestamp: Any) -> int:
    """Unix seconds as milliseconds, rounded once.

    Raises:
        ValueNotStorableError: When it is no time: NaN, infinite, or out of the calendar.
    """
    try:
        rounded = round(float(timestamp) * 1000)
    except Exception as error:  # a foreign __float__ may raise anything
        raise _no_time(timestamp) from error
    if not _EARLIEST_MILLISECONDS <= rounded <= _LATEST_MILLISECONDS:
        raise _no_time(timestamp)
    return rounded


def _no_time(timestamp: Any) -> ValueNotStorableError:
    hint = "Pass unix seconds as a number, of a year from 1 to 9999 (not milliseconds)."
    if hasattr(timestamp, "timestamp"):
        hint = "Pass its .timestamp()."
    return ValueNotStorableError(f"{shown(timestamp)} is not a time", hint=hint)
