r"""Sealed blocks of samples that were saved one by one.

All integers are little-endian. A block is a header and one compressed stream:

======  ========================================================================================================
bytes   content of the header
======  ========================================================================================================
3       ``"VML"``
1       format version (1)
1       ``BlockMethod``
4       number of samples, ``n``
4       bytes of the stream, inflated
4       CRC-32 of the header's first 13 bytes and of the stream as stored
======  ========================================================================================================

The stream is a row of columns, each of them one byte for the width ``w`` and ``w`` byte planes of ``n`` (or as
many as said below), the lowest first. Differences are to the entry before (the first one to 0), signed ones zigzag.
In order of arrival: differences of the sequences, of the positions, of the times. Then the series: how many, their
ascending ids as differences, how many samples each has, and whether its values are whole numbers. In order of series,
then arrival: differences of the places in the order of arrival, type bytes, and the values of the series of whole
numbers as differences, then those of the other series as differences of their bits; at the start of a series the
entry before is 0. The rest is JSON: place in the order of arrival (decimal) to metadata; empty when there is none.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.errors import StoreDamagedError, ValueNotStorableError
from vllm_monitor.persistence.samples.blocks.method import BlockMethod, compress, damaged, inflate
from vllm_monitor.persistence.samples.blocks.planes import unzigzag, zigzag

__all__ = ["LARGEST_LOOSE_BLOCK", "LooseBlock", "decode_loose_block", "encode_loose_block"]

LARGEST_LOOSE_BLOCK = 1 << 22
"""Samples that one block may hold."""

_MAGIC = b"VML"
_VERSION = 1
_HEAD = struct.Struct("<3sBBII")
_CHECKSUM = struct.Struct("<I")
_LARGEST_STREAM = 1 << 29
_LARGEST_WHOLE = float(1 << 61)  # the difference of two such numbers fits into int64

Integers = NDArray[np.int64]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True)
class LooseBlock:
    """Samples in order of arrival; the arrays have equal length.

    Args:
        sequences: Id of the row that a sample was stored in first.
        positions: Its place within that row.
        times_ms: Unix milliseconds.
        series_ids: ``series.id``.
        values: float64, bit for bit.
        codes: Type byte (``sample_values``).
        metadata: Encoded metadata by place in the arrays, for the samples that have any.
    """

    sequences: Integers
    positions: Integers
    times_ms: Integers
    series_ids: Integers
    values: NDArray[np.float64]
    codes: NDArray[np.uint8]
    metadata: dict[int, str]


def encode_loose_block(
    sequences: Integers,
    positions: Integers,
    times_ms: Integers,
    series_ids: Integers,
    values: NDArray[np.float64],
    codes: NDArray[np.uint8],
    metadata: Mapping[int, str],
    *,
    method: BlockMethod = BlockMethod.ZLIB,
) -> bytes:
    """Samples in order of arrival as a sealed block; see :class:`LooseBlock` for what is what.

    Raises:
        ValueNotStorableError: When the arrays differ in length or are longer than a block may be.
    """
    count = len(values)
    if any(len(array) != count for array in (sequences, positions, times_ms, series_ids, codes)):
        raise ValueNotStorableError("the columns of a block differ in length", hint="Pass one entry per sample.")
    if count > LARGEST_LOOSE_BLOCK:
        raise ValueNotStorableError(f"a block cannot hold {count} samples", hint="Make several blocks.")
    order = np.argsort(series_ids, kind="stable")
    ids, starts, sizes = np.unique(np.asarray(series_ids)[order], return_index=True, return_counts=True)
    bits = np.ascontiguousarray(np.asarray(values, dtype=np.float64)[order]).view(np.int64)
    whole_numbers, is_whole = _whole_numbers(bits)
    whole = np.logical_and.reduceat(is_whole, starts) if count else np.zeros(0, dtype=bool)
    of_whole = np.repeat(whole, sizes)
    parts = [
        *(_signed(_differences(np.asarray(array, dtype=np.int64))) for array in (sequences, positions, times_ms)),
        struct.pack("<I", len(ids)),
        _signed(_differences(ids.astype(np.int64))),
        _unsigned(sizes.astype(np.uint64)),
        _unsigned(whole.astype(np.uint64)),
        _signed(_differences(order.astype(np.int64), starts)),
        _unsigned(np.asarray(codes)[order].astype(np.uint64)),
        _signed(_differences(whole_numbers, starts)[of_whole]),
        _signed(_differences(bits, starts)[~of_whole]),
    ]
    if metadata:
        parts.append(json.dumps({str(place): text for place, text in sorted(metadata.items())}).encode())
    raw = b"".join(parts)
    stored = compress(parts, method)
    head = _HEAD.pack(_MAGIC, _VERSION, method, count, len(raw))
    return head + _CHECKSUM.pack(zlib.crc32(stored, zlib.crc32(head))) + stored


def decode_loose_block(payload: bytes) -> LooseBlock:
    """The samples of a block, in order of arrival.

    Raises:
        StoreDamagedError: When the payload does not have the documented form.
    """
    try:
        return _decode(payload)
    except StoreDamagedError:
        raise
    except (struct.error, ValueError, IndexError, OverflowError, AttributeError, RecursionError) as error:
        raise damaged("single samples do not have their documented form") from error


def _decode(payload: bytes) -> LooseBlock:
    magic, version, method, count, raw_bytes = _HEAD.unpack_from(payload)
    (checksum,) = _CHECKSUM.unpack_from(payload, _HEAD.size)
    stored = payload[_HEAD.size + _CHECKSUM.size :]
    if magic != _MAGIC or version != _VERSION or zlib.crc32(stored, zlib.crc32(payload[: _HEAD.size])) != checksum:
        raise damaged("single samples do not match their checksum")
    if count > LARGEST_LOOSE_BLOCK or raw_bytes > _LARGEST_STREAM:
        raise damaged("single samples claim an impossible size")
    source = _Source(inflate(stored, raw_bytes, BlockMethod(method)))
    sequences, positions, times_ms = (np.cumsum(source.signed(count)) for _ in range(3))
    series = source.length()
    ids = np.cumsum(source.signed(series))
    sizes, whole = source.unsigned(series).view(np.int64), source.unsigned(series).astype(bool)
    if int(sizes.min(initial=1)) < 1 or int(sizes.max(initial=0)) > count or int(sizes.sum()) != count:
        raise damaged("single samples are of other series than they say")
    starts = np.cumsum(sizes) - sizes
    order = _sums(source.signed(count), starts, sizes)
    if count and not np.array_equal(np.sort(order), np.arange(count)):
        raise damaged("single samples are in no order")
    codes = source.unsigned(count)
    of_whole = np.repeat(whole, sizes)
    differences = np.zeros(count, dtype=np.int64)
    differences[of_whole] = source.signed(int(of_whole.sum()))
    differences[~of_whole] = source.signed(count - int(of_whole.sum()))
    grouped = _sums(differences, starts, sizes)
    grouped[of_whole] = grouped[of_whole].astype(np.float64).view(np.int64)
    metadata = {int(place): str(text) for place, text in json.loads(source.rest()).items()} if source.rest() else {}
    if any(not 0 <= place < count for place in metadata) or int(codes.max(initial=0)) > 0xFF:
        raise damaged("single samples have metadata or types of none of them")
    return LooseBlock(
        sequences,
        positions,
        times_ms,
        _in_order(np.repeat(ids, sizes), order),
        _in_order(grouped, order).view(np.float64),
        _in_order(codes.astype(np.uint8), order),
        metadata,
    )


class _Source:
    """Takes columns off the front of an inflated stream."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    def length(self) -> int:
        (length,) = struct.unpack_from("<I", self._raw, self._at)
        self._at += 4
        if length > len(self._raw):
            raise damaged("single samples claim more series than they have bytes")
        return int(length)

    def unsigned(self, count: int) -> NDArray[np.uint64]:
        width = self._raw[self._at]
        if width > 8:
            raise damaged("single samples have a column wider than a number")
        planes = np.frombuffer(self._raw, np.uint8, count * width, self._at + 1).reshape(width, count)
        self._at += 1 + count * width
        values = np.zeros((count, 8), dtype=np.uint8)
        values[:, :width] = planes.T
        return values.reshape(-1).view("<u8").astype(np.uint64, copy=False)

    def signed(self, count: int) -> Integers:
        return unzigzag(self.unsigned(count))

    def rest(self) -> bytes:
        return self._raw[self._at :]


def _whole_numbers(bits: Integers) -> tuple[Integers, NDArray[np.bool_]]:
    values = bits.view(np.float64)
    with np.errstate(invalid="ignore"):
        numbers = values.astype(np.int64)
        return numbers, (numbers.astype(np.float64).view(np.int64) == bits) & (np.abs(values) < _LARGEST_WHOLE)


def _differences(values: Integers, starts: NDArray[np.int64] | None = None) -> Integers:
    """To the entry before; at the start of a group to 0."""
    differences = np.diff(values, prepend=np.int64(0))
    if starts is not None:
        differences[starts] = values[starts]
    return differences


def _sums(differences: Integers, starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Integers:
    """What :func:`_differences` was given, group by group."""
    sums = np.cumsum(differences)
    return sums - np.repeat(sums[starts] - differences[starts], sizes)


def _in_order(grouped: NDArray[Scalar], order: Integers) -> NDArray[Scalar]:
    arrived = np.empty_like(grouped)
    arrived[order] = grouped
    return arrived


def _signed(values: Integers) -> bytes:
    return _unsigned(zigzag(values))


def _unsigned(values: NDArray[np.uint64]) -> bytes:
    width = (int(values.max(initial=0)).bit_length() + 7) // 8
    planes = values.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)[:, :width].T
    return bytes((width,)) + planes.tobytes()
