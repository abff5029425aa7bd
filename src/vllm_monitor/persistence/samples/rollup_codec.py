"""The payload of a row of ``rollups``: a stream in steps, as a block (``blocks.codec``) of derived series.

======================  ===================================================================================
bytes                   content
======================  ===================================================================================
4                       bytes of the forms as stored, little-endian
4                       CRC-32 of the forms as stored
as said                 zlib: one byte per column of the layout, its ``Form``
the rest                a block; its times are the starts of the buckets, its sequences see below
======================  ===================================================================================

Row 0 of the block is no bucket: it has the first value of each column, so that growth over the border to the row
before can be told. The other rows are the buckets. Columns of the block: first ``last`` of every column of the
layout; then, column by column, ``correction`` where the form is ``COUNTER_WITH_RESETS``, or ``low``, ``high``,
``total`` and ``count`` where it is ``GAUGE``. Cells without a sample are absent. The sequence of row 0 is the least of
the samples behind the roll-up, that of a bucket the greatest of the samples in it: so it can be told whether a sample
is behind it also when the samples are gone.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence.samples.blocks.codec import BlockMethod, encode_block
from vllm_monitor.persistence.samples.blocks.reader import BlockReader
from vllm_monitor.persistence.samples.summaries import Floats
from vllm_monitor.records import MetricKind, Series

__all__ = ["Form", "Rollup", "RollupReader", "encode_rollup", "last_sequences"]

_HEAD = struct.Struct("<II")
_GAUGE_FIELDS = ("low", "high", "total", "count")
_MOST_COLUMNS = 1 << 20


class Form(IntEnum):
    """What is kept of a column; the numbers are those on disk."""

    COUNTER = 0
    COUNTER_WITH_RESETS = 1
    GAUGE = 2


_EXTRA_COLUMNS = np.array([0, 1, 4])


@dataclass(frozen=True, slots=True)
class Rollup:
    """A stream in steps. Arrays are (buckets, columns) if nothing else is said; absent cells hold anything.

    Args:
        bucket_ms: (buckets,), ascending starts.
        forms: (columns,), the ``Form`` of each.
        present: Where there are samples.
        first: (columns,), the first value.
        last: The last value.
        correction: See ``summaries.Summary``; zero for gauges.
        low: As ``high``, ``total`` and ``count`` only of gauges; see ``summaries.Spread``.
        high: See there.
        total: See there.
        count: See there.
        first_sequence: The least sequence behind it.
        last_sequences: (buckets,), the greatest sequence behind each.
    """

    bucket_ms: NDArray[np.int64]
    forms: NDArray[np.uint8]
    present: NDArray[np.bool_]
    first: Floats
    last: Floats
    correction: Floats
    low: Floats
    high: Floats
    total: Floats
    count: Floats
    first_sequence: int
    last_sequences: NDArray[np.int64]

    def size_bytes(self) -> int:
        """The memory that the arrays take."""
        return self.present.nbytes + 2 * self.bucket_ms.nbytes + 6 * self.last.nbytes


def last_sequences(
    bucket_ms: NDArray[np.int64], times_ms: NDArray[np.int64], sequences: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The greatest sequence in each of ascending buckets, of samples in any order; every bucket has some."""
    last = np.full(len(bucket_ms), np.iinfo(np.int64).min)
    np.maximum.at(last, np.searchsorted(bucket_ms, times_ms, side="right") - 1, sequences)
    return last


def encode_rollup(rollup: Rollup, series: Sequence[Series], method: BlockMethod) -> bytes:
    """The payload; ``series`` are the columns of the layout."""
    forms = zlib.compress(np.asarray(rollup.forms, dtype=np.uint8).tobytes(), 9)
    there = np.vstack([rollup.present.any(axis=0, keepdims=True), rollup.present])
    columns = [np.vstack([rollup.first[None, :], rollup.last])]
    sources = [np.arange(len(series))]
    names = [*series]
    for column in np.flatnonzero(rollup.forms != Form.COUNTER).tolist():
        is_gauge = rollup.forms[column] == Form.GAUGE
        for field in _GAUGE_FIELDS if is_gauge else ("correction",):
            values = getattr(rollup, field)[:, column]
            first = values[:1] if is_gauge else np.zeros(1)
            columns.append(np.concatenate([first, values])[:, None])
            sources.append(np.array([column]))
            names.append(Series(f"{series[column].name}:{field}", series[column].labels, MetricKind.GAUGE))
    bits = np.ascontiguousarray(np.hstack(columns)).view(np.uint64)
    present = None if there.all() else there[:, np.concatenate(sources)]
    times = np.concatenate([rollup.bucket_ms[:1], rollup.bucket_ms])
    sequences = np.concatenate([[rollup.first_sequence], rollup.last_sequences])
    block = encode_block(times, sequences, bits, names, method=method, present=present)
    return _HEAD.pack(len(forms), zlib.crc32(forms)) + forms + block


class RollupReader:
    """Reads a payload, only the columns that are asked for. Not for several threads at once.

    Args:
        read: ``read(offset, length)`` gives that many bytes of the payload.
        size: Bytes of the whole payload.

    Raises:
        StoreDamagedError: When it does not have the documented form.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        try:
            stored_bytes, checksum = _HEAD.unpack(read(0, _HEAD.size))
            start = _HEAD.size + stored_bytes
            if start > size:
                raise _damaged("is too short")
            stored = read(_HEAD.size, stored_bytes)
            if zlib.crc32(stored) != checksum:
                raise _damaged("has forms that do not match their checksum")
            raw = zlib.decompressobj().decompress(stored, _MOST_COLUMNS)
        except (struct.error, zlib.error) as error:
            raise _damaged("does not begin as it should") from error
        self.forms = np.frombuffer(raw, dtype=np.uint8)
        if len(self.forms) and int(self.forms.max()) > Form.GAUGE:
            raise _damaged("has a form that there is not")
        self._block = BlockReader(lambda offset, length: read(start + offset, length), size - start)
        extra = _EXTRA_COLUMNS[self.forms]
        self._extra_at = len(self.forms) + np.cumsum(extra) - extra
        has_bucket = self._block.rows > 1  # row 0 is none
        if self._block.column_count != len(self.forms) + int(extra.sum()) or not has_bucket:
            raise _damaged("has other columns than its forms say")

    def read(self, wanted: Sequence[int]) -> Rollup:
        """Some columns, in the order asked for.

        Raises:
            StoreDamagedError: When what they need is damaged.
        """
        forms = self.forms[list(wanted)]
        shape = (self._block.rows - 1, len(forms))
        lasts = self._block.columns(wanted).view(np.float64)
        there = self._block.present(wanted)
        found = {name: np.zeros(shape) for name in ("correction", *_GAUGE_FIELDS)}
        for place, (column, form) in enumerate(zip(wanted, forms.tolist(), strict=True)):
            fields = {Form.COUNTER: (), Form.COUNTER_WITH_RESETS: ("correction",), Form.GAUGE: _GAUGE_FIELDS}[form]
            if fields:
                at = int(self._extra_at[column])
                extra = self._block.columns(range(at, at + len(fields))).view(np.float64)
                for number, name in enumerate(fields):
                    found[name][:, place] = extra[1:, number]
        present = np.ones(shape, dtype=bool) if there is None else there[1:]
        sequences = self._block.sequences()
        return Rollup(
            self._block.times_ms()[1:], forms, present, lasts[0], lasts[1:], **found,
            first_sequence=int(sequences[0]), last_sequences=sequences[1:],
        )  # fmt: skip


def _damaged(what: str) -> StoreDamagedError:
    return StoreDamagedError(f"the payload of a roll-up {what}", hint="Run vllm-monitor check.")
