"""Fields of records as columns that every SQL database can hold, and back.

Each function says whether the column tells the whole value; what it does not tell is stored a second time, see
``rare_rows``.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Callable
from enum import Enum
from typing import Any

from vllm_monitor.errors import StoreDamagedError, ValueNotStorableError
from vllm_monitor.persistence.codecs.arguments import shown
from vllm_monitor.persistence.codecs.text_column import from_text_column, to_text_column
from vllm_monitor.persistence.codecs.value_codec import decode_value, encode_value

__all__ = [
    "PACK_BYTES",
    "Form",
    "UnknownObject",
    "from_column",
    "pack_text",
    "to_column",
    "unpack_text",
    "unpacked_bytes",
]

UnknownObject = Callable[[Any], str] | None

PACK_BYTES = 4096
"""Values of the forms that allow it are compressed when their text is longer."""
_PACKED = "zlib:"
_LARGEST_VALUE = 1 << 30  # inflating stops here, whatever a damaged column claims
_LEAST_INT, _MOST_INT = -(1 << 63), (1 << 63) - 1


class Form(Enum):
    """What a column holds.

    ``TEXT`` a text; ``TIME`` unix seconds, finite; ``REAL`` a number or nothing; ``WHOLE`` a whole number or
    nothing; ``FLAG`` yes or no, as 1 or 0; ``JSON`` any value, as text of ``value_codec``; ``PACKED`` likewise,
    compressed when it is large.
    """

    TEXT = "text"
    TIME = "time"
    REAL = "real"
    WHOLE = "whole"
    FLAG = "flag"
    JSON = "json"
    PACKED = "packed"


def to_column(
    value: Any,
    form: Form | type[Enum],
    name: str,
    *,
    optional: bool,
    on_unknown: UnknownObject = None,
    compress: bool = True,
) -> tuple[Any, bool]:
    """The column of a field, and whether it says all of it.

    Args:
        value: The field's value.
        form: What the column holds; an enum's class for the value of a member.
        name: The field, for messages.
        optional: Whether the column may be empty.
        on_unknown: As in ``encode_value``.
        compress: Whether ``PACKED`` columns are.

    Raises:
        ValueNotStorableError: When the value could not be given back unchanged.
    """
    if form is Form.JSON or form is Form.PACKED:
        if value is None and optional:
            return None, True
        text = encode_value(value, on_unknown=on_unknown)
        return (pack_text(text) if form is Form.PACKED and compress else text), True
    if form is Form.TIME:
        return _to_time(value, name)
    if value is None and optional:
        return None, True
    if form is Form.REAL:
        return _to_real(value, optional=optional)
    if form is Form.WHOLE:
        exact = type(value) is int and _LEAST_INT <= value <= _MOST_INT
        return (value if exact else None if optional else 0), exact
    if form is Form.FLAG:
        return int(value) if type(value) is bool else 0, type(value) is bool
    if isinstance(form, type):
        if type(value) is form:
            return value.value, True
    elif type(value) is str:
        return to_text_column(value), True
    return to_text_column(_text_of(value)), False


def from_column(column: Any, form: Form | type[Enum]) -> Any:
    """The value of a column.

    Raises:
        StoreDamagedError: When it holds no such value.
    """
    if column is None:
        return column
    if form in (Form.TIME, Form.REAL, Form.WHOLE):
        return _number(column, whole=form is Form.WHOLE)
    if form is Form.FLAG:
        return bool(column)
    if form is Form.JSON or form is Form.PACKED:
        return decode_value(unpack_text(column) if form is Form.PACKED else column)
    text = from_text_column(column)
    if isinstance(form, type):
        # A member that a newer version added: its plain value is more use than an error.
        return form(text) if text in {member.value for member in form} else text
    return text


def _number(column: Any, *, whole: bool) -> Any:
    """SQLite lets any value stand in any column, with a checksum that fits."""
    if type(column) is int or (type(column) is float and not whole and math.isfinite(column)):
        return column
    raise StoreDamagedError(f"a column of numbers holds {type(column).__name__}", hint="Run vllm-monitor check.")


def pack_text(text: str) -> str:
    """A text, compressed (``zlib:`` and base64) when it is long and that makes it shorter."""
    if len(text) <= PACK_BYTES:
        return text
    packed = _PACKED + base64.b64encode(zlib.compress(text.encode(), 6)).decode("ascii")
    return packed if len(packed) < len(text) else text


def unpack_text(column: str) -> str:
    """What :func:`pack_text` was given.

    Raises:
        StoreDamagedError: When it cannot be inflated.
    """
    if not column.startswith(_PACKED):
        return column
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(base64.b64decode(column[len(_PACKED) :], validate=True), _LARGEST_VALUE)
        text = data.decode()
    except (zlib.error, ValueError) as error:
        raise StoreDamagedError("a packed value cannot be read", hint="Run vllm-monitor check.") from error
    if not inflater.eof:
        raise StoreDamagedError("a packed value is cut off", hint="Run vllm-monitor check.")
    return text


def unpacked_bytes(column: str, most: int) -> int:
    """How long the text of a packed column is; not looked at further than ``most`` (then the answer is more).

    Raises:
        StoreDamagedError: When it cannot be inflated.
    """
    if not column.startswith(_PACKED):
        return len(column)
    try:
        return len(zlib.decompressobj().decompress(base64.b64decode(column[len(_PACKED) :], validate=True), most + 1))
    except (zlib.error, ValueError) as error:
        raise StoreDamagedError("a packed value cannot be read", hint="Run vllm-monitor check.") from error


def _to_time(value: Any, name: str) -> tuple[float, bool]:
    real = _float_of(value)
    if not math.isfinite(real):
        raise ValueNotStorableError(f"{name} is no time", hint="Pass unix seconds as a finite number.")
    return real + 0.0, _is_plain(value)  # a database gives minus zero back as zero, and the checksum must hold


def _to_real(value: Any, *, optional: bool) -> tuple[float | None, bool]:
    real = _float_of(value)
    if not math.isfinite(real):
        return (None if optional else 0.0), False  # SQLite makes NaN an empty column
    return real + 0.0, _is_plain(value)


def _float_of(value: Any) -> float:
    try:
        return float(value)
    except Exception:  # a foreign __float__ may raise anything; whatever it is, it is no number
        return math.nan


def _text_of(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # a foreign __str__ may raise anything; whether the object can be stored is said elsewhere
        return shown(value)


def _is_plain(value: Any) -> bool:
    return type(value) is float and (value != 0 or math.copysign(1, value) > 0)
