"""Columns as values that JSON can say, and back: readable where that is exact.

A text column that holds a JSON object or list becomes that object or list, when writing it again gives the same text;
any other text stays a text, so there is one way back. Bytes become base64. A float64 becomes a number, or its 16
hexadecimal digits (``"0x7ff8000000000001"``) when it is infinite or no number: its bits survive.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import LargeBinary, Table

from vllm_monitor.errors import StoreDamagedError

__all__ = ["bits_from_json", "bits_to_json", "bytes_of", "fields_of", "nested", "row_of", "text_of"]

_BITS = re.compile("0x[0-9a-f]{16}", re.ASCII)


def nested(text: str) -> Any:
    """The object or list that a text is the JSON of; the text itself when it could not be given back."""
    if not text.startswith(("{", "[")):
        return text
    try:
        value = json.loads(text)
        same = text_of(value) == text
    except (ValueError, RecursionError):
        return text
    return value if same else text


def text_of(value: Any) -> str:
    """The text that :func:`nested` was given."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def fields_of(table: Table, row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row: every column but ``id``."""
    fields: dict[str, Any] = {}
    for column in table.columns:
        value = row[column.name]
        if column.name == "id":
            continue
        if value is not None and isinstance(column.type, LargeBinary):
            value = base64.b64encode(value).decode("ascii")
        elif isinstance(value, str):
            value = nested(value)
        fields[column.name] = value
    return fields


def row_of(table: Table, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The row of some fields; columns that they lack are left out.

    Raises:
        StoreDamagedError: When a field is not what :func:`fields_of` made.
    """
    row: dict[str, Any] = {}
    for column in table.columns:
        if column.name not in fields:
            continue
        value = fields[column.name]
        if isinstance(value, str) and isinstance(column.type, LargeBinary):
            value = bytes_of(value)
        elif isinstance(value, (dict, list)):
            value = text_of(value)
        row[column.name] = value
    return row


def bytes_of(text: str) -> bytes:
    """The bytes of a base64 text.

    Raises:
        StoreDamagedError: When it is none.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise StoreDamagedError("a binary field is no base64", hint="The line is set aside.") from error


def bits_to_json(bits: NDArray[np.uint64], present: NDArray[np.bool_] | None = None) -> list[float | str | None]:
    """float64 bits as numbers, ``None`` where there is none."""
    numbers = np.ascontiguousarray(bits).view(np.float64)
    values: list[float | str | None] = numbers.tolist()
    for at in np.flatnonzero(~np.isfinite(numbers)):
        values[at] = f"0x{int(bits[at]):016x}"
    if present is not None:
        for at in np.flatnonzero(~present):
            values[at] = None
    return values


def bits_from_json(values: Any) -> tuple[NDArray[np.uint64], NDArray[np.bool_] | None]:
    """The bits of :func:`bits_to_json`, and where there are values (``None``: everywhere).

    Raises:
        StoreDamagedError: When one is neither a number, nor 16 digits, nor ``None``.
    """
    if type(values) is not list:
        raise _no_numbers()
    try:
        numbers = array("d", [value if type(value) in (float, int) else 0.0 for value in values])
    except OverflowError as error:
        raise _no_numbers() from error
    bits = np.frombuffer(numbers, dtype="<u8").copy() if values else np.empty(0, dtype="<u8")
    odd = {at: value for at, value in enumerate(values) if type(value) not in (float, int)}
    present = None
    for at, value in odd.items():
        if value is None:
            present = np.ones(len(values), dtype=bool) if present is None else present
            present[at] = False
        else:
            bits[at] = _bits_of(value)
    return bits, present


def _bits_of(digits: Any) -> int:
    if not isinstance(digits, str) or not _BITS.fullmatch(digits):
        raise _no_numbers()
    return int(digits, 0)


def _no_numbers() -> StoreDamagedError:
    return StoreDamagedError("the values of a line are no numbers", hint="The line is set aside.")
