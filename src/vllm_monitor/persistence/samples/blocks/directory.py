"""The directory at the front of a block: how each column is coded, and where.

Everything is little-endian. A block is

=====================  ====================================================================================
bytes                  content
=====================  ====================================================================================
24                     header: ``"VMB"``, format version (1), ``BlockMethod`` of the directory, three zero bytes, stored
                       bytes of the directory, its bytes inflated, CRC-32 of the first 16 bytes and of the
                       stored directory, four zero bytes
as the header says     directory: one table after the other, each field of a table as one array
as the directory says  the streams, one after the other: compressed bytes, then bytes that are stored as they are
=====================  ====================================================================================

Tables: ``shape`` (one row: rows, then the lengths of the other tables), ``columns``, ``streams``, ``masks``
(``MASK_TYPE``) and ``dictionary`` (float64 bits).
The first stream holds the masks, one bit per row; in the others lie the numbers of the columns, in their order.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.persistence.samples.blocks.masks import MASK_TYPE
from vllm_monitor.persistence.samples.blocks.method import BlockMethod, compress, damaged, inflate

__all__ = [
    "COLUMN_TYPE",
    "EXTRA_COLUMNS",
    "HEAD_BYTES",
    "LARGEST_CELLS",
    "LARGEST_COLUMNS",
    "LARGEST_ROWS",
    "NO_COLUMN",
    "NO_MASK",
    "STREAM_TYPE",
    "ColumnEntry",
    "ColumnKind",
    "Directory",
    "Form",
]

HEAD_BYTES = 24
NO_COLUMN = 0xFFFFFFFF
NO_MASK = 0xFFFFFFFF
LARGEST_ROWS = 1 << 20
LARGEST_COLUMNS = 1 << 17
LARGEST_CELLS = 1 << 26
EXTRA_COLUMNS = 2
"""The times and the sequences stand behind the columns of the block, coded as if they were two more."""

_MAGIC = b"VMB"
_VERSION = 1
_HEAD = struct.Struct("<3sBB3xIII4x")
_CHECKED = struct.Struct("<3sBB3xII")
_FIRST_READ = 8192
_LARGEST_DIRECTORY = 64 << 20


class ColumnKind(IntEnum):
    """How a column is coded."""

    CONSTANT = 0  # every row has the bits ``base``
    COPY = 1  # moves exactly as column ``source`` does
    SUM = 2  # moves as ``source`` and ``other`` do together
    NUMBERS = 3  # has integers of its own in ``stream``
    BESIDE = 4  # likewise, added to how ``source`` (and ``other``) move; NO_COLUMN does not move


class Form(IntEnum):
    """Flags: what the integers of a column mean."""

    UNSIGNED = 1  # not zigzag
    FROM_ONE = 2  # one less than meant
    LEVEL = 4  # where the column is above ``base``, not how it moves
    MINUS = 8  # SUM: ``other`` is subtracted. BESIDE: the numbers are
    DICTIONARY = 16  # the integers number ``other`` entries of the dictionary


COLUMN_TYPE = np.dtype(
    [
        ("kind", "<u1"),
        ("form", "<u1"),
        ("grid", "<i2"),
        ("base", "<u8"),
        ("slope", "<i8"),
        ("source", "<u4"),
        ("other", "<u4"),
        ("quantum", "<f8"),
        ("mask", "<u4"),
        ("width", "<u1"),
        ("noise", "<u1"),
        ("rest_width", "<u1"),
        ("rest_noise", "<u1"),
        ("stream", "<u4"),
        ("present", "<u4"),
    ]
)
STREAM_TYPE = np.dtype([("stored", "<u4"), ("raw", "<u4"), ("noise", "<u4"), ("checksum", "<u4"), ("method", "<u1")])
_SHAPE_TYPE = np.dtype([(name, "<u4") for name in ("rows", "columns", "streams", "masks", "dictionary")])

Table = NDArray[Any]


class ColumnEntry(NamedTuple):
    """A row of table ``columns`` in plain numbers.

    The numbers of a column are what ``kind`` and ``form`` say, for the rows that move by ``mask``: ``width`` byte
    planes, lowest first, those whose bit is set in ``noise`` in the part of the stream that is stored as it is. Where
    ``quantum`` is not 0, they count that quantum (rounded to an integer), and ``rest_width`` planes of zigzag rests
    follow. Numbers are moves from row to row on ``grid`` (``integers``); summed up, with ``base`` for the first row
    and ``slope`` more per row, they are the column. ``present`` is the mask of the rows that had the column at all.
    """

    kind: int
    form: int
    grid: int
    base: int
    slope: int
    source: int
    other: int
    quantum: float
    mask: int
    width: int
    noise: int
    rest_width: int
    rest_noise: int
    stream: int
    present: int


@dataclass(slots=True)
class Directory:
    """The tables; see the module.

    ``columns`` has two rows more than the block has columns: the times and the sequences, as numbers.
    """

    rows: int
    columns: Table
    streams: Table
    masks: Table
    dictionary: NDArray[np.uint64]

    def to_bytes(self, method: BlockMethod) -> bytes:
        """Header and directory."""
        tables = (self.columns, self.streams, self.masks, self.dictionary)
        shape = np.array([self.rows, *(len(table) for table in tables)], dtype="<u4")
        raw = shape.tobytes() + b"".join(_field_bytes(table) for table in tables)
        method = min(method, BlockMethod.ZLIB)  # read with every series: quickly
        stored = compress([raw], method)
        checked = _CHECKED.pack(_MAGIC, _VERSION, method, len(stored), len(raw))
        return (
            _HEAD.pack(_MAGIC, _VERSION, method, len(stored), len(raw), zlib.crc32(stored, zlib.crc32(checked)))
            + stored
        )

    @classmethod
    def read(cls, read: Callable[[int, int], bytes], size: int) -> tuple[Directory, int]:
        """The directory of a block of ``size`` bytes, and where its streams begin.

        Raises:
            StoreDamagedError: When anything about it does not fit.
        """
        front = read(0, min(size, _FIRST_READ))
        if len(front) < HEAD_BYTES:
            raise damaged("it is shorter than a header")
        magic, version, method, stored_bytes, raw_bytes, checksum = _HEAD.unpack_from(front)
        end = HEAD_BYTES + stored_bytes
        if magic != _MAGIC or version != _VERSION or method not in set(BlockMethod) or front[20:24].strip(b"\0"):
            raise damaged("it does not begin as a block of this version does")
        if end > size or raw_bytes > _LARGEST_DIRECTORY:
            raise damaged("its directory claims an impossible size")
        stored = front[HEAD_BYTES:end] + (read(len(front), end - len(front)) if end > len(front) else b"")
        if _HEAD.pack(*_HEAD.unpack_from(front)) != front[:HEAD_BYTES]:
            raise damaged("its header has bytes that must be zero")
        checked = _CHECKED.pack(magic, version, method, stored_bytes, raw_bytes)
        if zlib.crc32(stored, zlib.crc32(checked)) != checksum:
            raise damaged("its directory does not match its checksum")
        directory = cls._parse(inflate(stored, raw_bytes, BlockMethod(method)))
        streams = directory.streams
        if end + int(streams["stored"].sum(dtype=np.int64) + streams["noise"].sum(dtype=np.int64)) != size:
            raise damaged("it has another length than its directory says")
        return directory, end

    @classmethod
    def _parse(cls, raw: bytes) -> Directory:
        if len(raw) < _SHAPE_TYPE.itemsize:
            raise damaged("its directory is too short")
        shape = np.frombuffer(raw, _SHAPE_TYPE, 1)[0]
        rows, *lengths = (int(length) for length in shape.tolist())
        cells = rows * max(0, lengths[0] - EXTRA_COLUMNS)
        if rows > LARGEST_ROWS or lengths[0] > LARGEST_COLUMNS + EXTRA_COLUMNS or cells > LARGEST_CELLS:
            raise damaged("its directory claims an impossible shape")
        types: tuple[np.dtype[Any], ...] = (COLUMN_TYPE, STREAM_TYPE, MASK_TYPE, np.dtype("<u8"))
        sizes = [length * kind.itemsize for length, kind in zip(lengths, types, strict=True)]
        if _SHAPE_TYPE.itemsize + sum(sizes) != len(raw) or lengths[0] < EXTRA_COLUMNS:
            raise damaged("its directory has the wrong length")
        at = _SHAPE_TYPE.itemsize
        tables = []
        for length, kind, taken in zip(lengths, types, sizes, strict=True):
            tables.append(_fields_from(raw[at : at + taken], kind, length))
            at += taken
        columns, streams, masks, dictionary = tables
        return cls(rows, columns, streams, masks, dictionary)


def _field_bytes(table: NDArray[Any]) -> bytes:
    """A table, field by field: equal bytes come to lie together."""
    if table.dtype.names is None:
        return table.tobytes()
    return b"".join(np.ascontiguousarray(table[name]).tobytes() for name in table.dtype.names)


def _fields_from(raw: bytes, kind: np.dtype[Any], length: int) -> NDArray[Any]:
    if kind.names is None:
        return np.frombuffer(raw, kind, length)
    table = np.empty(length, kind)
    at = 0
    for name in kind.names:
        field = kind[name]
        table[name] = np.frombuffer(raw, field, length, at)
        at += length * field.itemsize
    return table
