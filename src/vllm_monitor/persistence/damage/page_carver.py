"""Rows of tables, carved out of the pages of an SQLite file without its schema, its header or its trees.

Whatever leads to the leaves of a table may be destroyed: each leaf is found by its own type byte, and its cells
by its own list of pointers. Pages of an overflowing payload begin with the high byte of a page number, so they
are never taken for leaves. What is carved is a claim: a caller that keeps a row verifies its checksum first.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from vllm_monitor.persistence.damage.sqlite_pages import PageView

__all__ = ["CarvedRow", "CarvedValue", "carve"]

CarvedValue = None | int | float | str | bytes

_TABLE_LEAF = 0x0D
_LEAF_HEADER_BYTES = 8
_FILE_HEADER_BYTES = 100
_LARGEST_PAYLOAD_BYTES = 1 << 30
_INT_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_REAL = 7
_ZERO, _ONE = 8, 9
_FIRST_BLOB = 12


@dataclass(frozen=True, slots=True, eq=False)
class CarvedRow:
    """A row as found; its values are read when they are asked for.

    Args:
        rowid: Its number; the value of a column that is an integer primary key.
        serials: The storage type of each column: 0 nothing, 1 to 6 and 8, 9 whole numbers, 7 a real number, from
            12 on bytes (even) and text (odd).
        page: The leaf that it was found on.
        view: Where its pages are.
    """

    rowid: int
    serials: tuple[int, ...]
    page: int
    view: PageView
    _body_bytes: int
    _local: bytes = field(repr=False)
    _overflow: int

    def values(self) -> tuple[CarvedValue, ...] | None:
        """The values of its columns; ``None`` when pages of it are missing."""
        body = self._body()
        if body is None:
            return None
        values: list[CarvedValue] = []
        at = 0
        for serial in self.serials:
            size = _bytes_of(serial)
            values.append(_value(serial, body[at : at + size]))
            at += size
        return tuple(values)

    def _body(self) -> bytes | None:
        parts, missing, following = [self._local], self._body_bytes - len(self._local), self._overflow
        while missing > 0:
            data = self.view.page(following)
            if data is None:
                return None
            part = data[4 : min(4 + missing, self.view.usable_bytes)]
            parts.append(part)
            missing -= len(part)
            following = int.from_bytes(data[:4], "big")
        return b"".join(parts)


def carve(view: PageView, numbers: Iterable[int]) -> Iterator[CarvedRow]:
    """The rows on those of the given pages that are leaves of a table, in order of page and row."""
    for number in numbers:
        data = view.page(number)
        if data is not None:
            yield from _rows_of(view, number, data)


def _rows_of(view: PageView, number: int, data: bytes) -> Iterator[CarvedRow]:
    start = _FILE_HEADER_BYTES if number == 1 else 0
    if data[start] != _TABLE_LEAF:
        return
    count = int.from_bytes(data[start + 3 : start + 5], "big")
    cells_from = start + _LEAF_HEADER_BYTES + 2 * count
    if cells_from > view.usable_bytes:
        return
    pointers = struct.unpack_from(f">{count}H", data, start + _LEAF_HEADER_BYTES)
    for pointer in pointers:
        if cells_from <= pointer < view.usable_bytes - 3:
            row = _row_at(view, number, data, pointer)
            if row is not None:
                yield row


def _row_at(view: PageView, number: int, data: bytes, at: int) -> CarvedRow | None:
    payload_bytes, at = _varint(data, at)
    rowid, at = _varint(data, at)
    if rowid >= 1 << 63:
        rowid -= 1 << 64
    if not 2 <= payload_bytes <= min(_LARGEST_PAYLOAD_BYTES, view.page_count * view.page_bytes):
        return None
    local_bytes = _local_bytes(payload_bytes, view.usable_bytes)
    end = at + local_bytes
    overflow = 0
    if local_bytes < payload_bytes:
        overflow = int.from_bytes(data[end : end + 4], "big")
        if not 1 < overflow <= view.page_count:
            return None
    if end > view.usable_bytes:
        return None
    local = data[at:end]
    head_bytes, at = _varint(local, 0)
    if not at < head_bytes <= len(local):
        return None  # a table of ours has so few columns that their types fit beside the first bytes
    serials = []
    while at < head_bytes:
        serial, at = _varint(local, at)
        serials.append(serial)
    body_bytes = payload_bytes - head_bytes
    if at != head_bytes or sum(map(_bytes_of, serials)) != body_bytes or {10, 11} & set(serials):
        return None
    return CarvedRow(rowid, tuple(serials), number, view, body_bytes, local[head_bytes:], overflow)


def _local_bytes(payload_bytes: int, usable_bytes: int) -> int:
    """How much of a payload lies on the leaf itself."""
    most = usable_bytes - 35
    if payload_bytes <= most:
        return payload_bytes
    least = (usable_bytes - 12) * 32 // 255 - 23
    wanted = least + (payload_bytes - least) % (usable_bytes - 4)
    return wanted if wanted <= most else least


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of one to nine bytes, and where it ends; whatever follows the data reads as zero."""
    value = 0
    for position in range(at, at + 9):
        byte = data[position] if position < len(data) else 0
        if position == at + 8:
            return value << 8 | byte, position + 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, position + 1
    raise AssertionError  # pragma: no cover - the ninth byte ends every number


def _bytes_of(serial: int) -> int:
    if serial >= _FIRST_BLOB:
        return (serial - _FIRST_BLOB) // 2
    return 8 if serial == _REAL else _INT_BYTES.get(serial, 0)


def _value(serial: int, data: bytes) -> CarvedValue:
    if serial >= _FIRST_BLOB:
        return data.decode("utf-8", "surrogateescape") if serial & 1 else data
    if serial == _REAL:
        return float(struct.unpack(">d", data)[0])
    if serial in _INT_BYTES:
        return int.from_bytes(data, "big", signed=True)
    return {_ZERO: 0, _ONE: 1}.get(serial)
