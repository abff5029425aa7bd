"""Reading sealed blocks: only the streams that the wanted columns need."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence.samples.blocks.directory import (
    EXTRA_COLUMNS,
    NO_COLUMN,
    NO_MASK,
    ColumnEntry,
    ColumnKind,
    Directory,
    Form,
)
from vllm_monitor.persistence.samples.blocks.integers import Integers, from_integers
from vllm_monitor.persistence.samples.blocks.likeness import regrid
from vllm_monitor.persistence.samples.blocks.masks import ALL_ROWS, MaskTable
from vllm_monitor.persistence.samples.blocks.method import BlockMethod, damaged, inflate
from vllm_monitor.persistence.samples.blocks.planes import Unsigned, planes_at, unzigzag
from vllm_monitor.persistence.samples.blocks.quantum import with_quantum

__all__ = ["MASK_STREAM", "BlockReader"]

Asked = TypeVar("Asked")

MASK_STREAM = 0
# Plain numbers: looking up a member of an enumeration costs more than what is done with it here.
_CONSTANT, _COPY, _SUM, _BESIDE = (
    int(kind) for kind in (ColumnKind.CONSTANT, ColumnKind.COPY, ColumnKind.SUM, ColumnKind.BESIDE)
)
_UNSIGNED, _FROM_ONE, _LEVEL, _MINUS, _DICTIONARY = (
    int(form) for form in (Form.UNSIGNED, Form.FROM_ONE, Form.LEVEL, Form.MINUS, Form.DICTIONARY)
)
_METHODS = frozenset(int(method) for method in BlockMethod)
_ONE = np.uint64(1)
_ONES = np.array([number.bit_count() for number in range(256)], dtype=np.int64)
_FAULTS = (ValueError, IndexError, OverflowError, TypeError, RecursionError, FloatingPointError)


class BlockReader:
    """Reads one block. Not for several threads at once.

    What was read is kept, so asking for several columns of a histogram one by one costs no more than at once.

    Args:
        read: ``read(offset, length)`` gives that many bytes of the block.
        size: Bytes of the whole block.

    Raises:
        StoreDamagedError: When the directory is damaged.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read = read
        self._directory, start = Directory.read(read, size)
        streams = self._directory.streams
        lengths = streams["stored"].astype(np.int64) + streams["noise"]
        self._offsets = (start + np.cumsum(lengths) - lengths).tolist()
        self.rows: int = self._directory.rows
        self.column_count: int = len(self._directory.columns) - EXTRA_COLUMNS
        self._streams: dict[int, tuple[bytes, bytes]] = {}
        self._moves_of: dict[int, Integers] = {}
        self._masks: MaskTable | None = None
        self._starts: tuple[list[int], list[int]] | None = None
        self._entries: dict[int, ColumnEntry] = {}

    def times_ms(self) -> NDArray[np.int64]:
        """Unix milliseconds of each row."""
        return self._guard(self._integers, self.column_count)

    def sequences(self) -> NDArray[np.int64]:
        """The place of each row in the order of arrival."""
        return self._guard(self._integers, self.column_count + 1)

    def columns(self, wanted: Sequence[int]) -> NDArray[np.uint64]:
        """The float64 bits of some columns, as (rows, columns) in the order asked for.

        Absent cells have unspecified bits.

        Raises:
            StoreDamagedError: When what they need is damaged.
            IndexError: When there is no such column.
        """
        self._check(wanted)
        found = np.empty((len(wanted), self.rows), dtype=np.uint64)
        # Counters (buckets, mostly) many at once; every other column by itself.
        counters = [index for index, column in enumerate(wanted) if self._is_counter(column)] if self.rows else []
        if counters:
            found[counters] = self._guard(self._counters, [wanted[index] for index in counters])
        for index in sorted(set(range(len(wanted))) - set(counters)):
            found[index] = self._guard(self._bits, wanted[index])
        return found.T

    def present(self, wanted: Sequence[int]) -> NDArray[np.bool_] | None:
        """Which cells of some columns were there, as (rows, columns); ``None``: all of the whole block.

        Raises:
            StoreDamagedError: When the masks are damaged.
            IndexError: When there is no such column.
        """
        self._check(wanted)
        numbers = self._directory.columns["present"]
        if not numbers.any():
            return None
        found = np.empty((len(wanted), self.rows), dtype=bool)
        for index, column in enumerate(wanted):
            found[index] = self._guard(self._presence, int(numbers[column]))
        return found.T

    def verify(self) -> None:
        """Read everything.

        Raises:
            StoreDamagedError: When anything of the block is damaged.
        """
        for stream in range(len(self._offsets)):
            self._stream(stream)
        times, sequences = self.times_ms(), self.sequences()
        if len(times) != self.rows or np.any(sequences[1:] <= sequences[:-1]):
            raise damaged("its rows are not in order")
        everything = range(self.column_count)
        self.present(everything)
        for column in everything:
            self._guard(self._bits, column)

    def _check(self, wanted: Sequence[int]) -> None:
        if any(not 0 <= column < self.column_count for column in wanted):
            raise IndexError(f"the block has columns 0 to {self.column_count - 1}, not all of {list(wanted)[:20]}")

    def _guard(self, work: Callable[[Asked], NDArray[Any]], number: Asked) -> NDArray[Any]:
        """Checksums hold, but a directory may still have been made to harm: its contradictions are damage, too."""
        try:
            return work(number)
        except StoreDamagedError:
            raise
        except _FAULTS as error:
            raise damaged("its directory contradicts its streams") from error

    def _bits(self, column: int) -> Unsigned:
        entry = self._entry(column)
        if entry.kind == _CONSTANT:
            return np.full(self.rows, entry.base, dtype=np.uint64)
        integers = self._integers(column)
        if entry.form & _DICTIONARY:
            return self._look_up(column, integers)
        return from_integers(integers, entry.grid)

    def _is_counter(self, column: int) -> bool:
        entry = self._entry(column)
        return entry.kind != _CONSTANT and entry.grid == 0 and not entry.form & (_LEVEL | _DICTIONARY)

    def _counters(self, columns: list[int]) -> Unsigned:
        integers = np.empty((len(columns), self.rows), dtype=np.int64)
        for index, column in enumerate(columns):
            integers[index, 0] = np.uint64(self._entry(column).base).astype(np.int64)
            integers[index, 1:] = self._moves(column)
        np.cumsum(integers, axis=1, out=integers)
        return integers.astype(np.float64).view(np.uint64)

    def _entry(self, column: int) -> ColumnEntry:
        known = self._entries.get(column)
        if known is None:
            known = ColumnEntry(*self._directory.columns[column].item())
            self._entries[column] = known
        return known

    def _look_up(self, column: int, integers: Integers) -> Unsigned:
        columns = self._directory.columns
        earlier = columns[:column]
        start = int(earlier["other"][(earlier["form"] & _DICTIONARY) != 0].sum(dtype=np.int64))
        entries = self._directory.dictionary[start : start + int(columns["other"][column])]
        if len(integers) and not 0 <= int(integers.min()) <= int(integers.max()) < len(entries):
            raise damaged("a column points outside its dictionary")
        return np.asarray(entries[integers])

    def _integers(self, column: int) -> Integers:
        entry = self._entry(column)
        integers = np.empty(self.rows, dtype=np.int64)
        if not self.rows:
            return integers
        if entry.form & _LEVEL:
            integers[:] = self._own_numbers(column, entry)
        else:
            integers[0] = 0
            np.cumsum(self._moves(column), out=integers[1:])
        integers += np.uint64(entry.base).astype(np.int64)
        if entry.slope:
            integers += np.arange(self.rows, dtype=np.int64) * np.int64(entry.slope)
        return integers

    def _moves(self, column: int) -> Integers:
        """How a column changes from row to row."""
        known = self._moves_of.get(column)
        if known is not None:
            return known
        # Columns coded beside others form chains (of buckets, mostly), walked without recursion.
        chain = [column]
        while self._entry(chain[-1]).kind == _BESIDE:
            source = self._entry(chain[-1]).source
            if source == NO_COLUMN or source in self._moves_of:
                break
            if source >= self.column_count or len(chain) > self.column_count:
                raise damaged("its columns refer to each other in a circle")
            chain.append(source)
        for link in reversed(chain):
            self._moves_of[link] = self._moves_alone(link)
        return self._moves_of[column]

    def _moves_alone(self, column: int) -> Integers:
        entry = self._entry(column)
        kind, form = entry.kind, entry.form
        if kind == _COPY:
            return self._moves_of_source(entry.source)
        if kind == _SUM:
            one = self._moves_of_source(entry.source)
            other = self._moves_of_source(entry.other)
            return one - other if form & _MINUS else one + other
        if kind == _CONSTANT:
            return np.zeros(self.rows - 1, dtype=np.int64)
        if form & _LEVEL:
            return np.diff(self._own_numbers(column, entry))
        numbers = self._own_numbers(column, entry)
        if form & _MINUS:
            numbers = -numbers
        if entry.mask == ALL_ROWS:
            moves = numbers
        else:
            moves = np.zeros(self.rows - 1, dtype=np.int64)
            moves[self._mask_table().moving_rows(entry.mask)] = numbers
        if kind == _BESIDE:
            for source in (entry.source, entry.other):
                if source != NO_COLUMN:
                    moves = moves + regrid(self._moves_of_source(source), self._entry(source).grid, entry.grid)
        return moves

    def _moves_of_source(self, source: int) -> Integers:
        if source >= self.column_count:
            raise damaged("a column refers to one that it cannot be made of")
        return self._moves(source)

    def _own_numbers(self, column: int, entry: ColumnEntry) -> Integers:
        """The integers that a column has in its stream."""
        count = self.rows if entry.form & _LEVEL else int(self._mask_table().counts[entry.mask])
        packed, noise = self._stream(entry.stream)
        starts, noise_starts = self._section_starts()
        at, noise_at = starts[column], noise_starts[column]
        first, used, noise_used = planes_at(packed, at, noise, noise_at, count, entry.width, entry.noise)
        if entry.form & _FROM_ONE:
            first = first + _ONE
        numbers = first.view(np.int64) if entry.form & _UNSIGNED else unzigzag(first)
        if not entry.quantum:
            return numbers
        if not 0 < entry.quantum < math.inf:
            raise damaged("a column counts in impossible quanta")
        at, noise_at = at + used, noise_at + noise_used
        rest, _, _ = planes_at(packed, at, noise, noise_at, count, entry.rest_width, entry.rest_noise)
        return with_quantum(numbers, unzigzag(rest), entry.quantum)

    def _section_starts(self) -> tuple[list[int], list[int]]:
        """Where each column's section begins in its stream, and in the noise of its stream."""
        if self._starts is None:
            self._starts = section_starts(self._directory, self._mask_table())
        return self._starts

    def _presence(self, number: int) -> NDArray[np.bool_]:
        return self._mask_table()[number]

    def _mask_table(self) -> MaskTable:
        if self._masks is None:
            self._masks = MaskTable(self._directory.masks, lambda: self._stream(MASK_STREAM)[0], self.rows)
        return self._masks

    def _stream(self, number: int) -> tuple[bytes, bytes]:
        """A stream, inflated, and its noise."""
        known = self._streams.get(number)
        if known is None:
            entry = self._directory.streams[number]
            stored_bytes, noise_bytes = int(entry["stored"]), int(entry["noise"])
            stored = self._read(self._offsets[number], stored_bytes + noise_bytes)
            if len(stored) != stored_bytes + noise_bytes or zlib.crc32(stored) != int(entry["checksum"]):
                raise damaged(f"stream {number} does not match its checksum")
            method = int(entry["method"])
            if method not in _METHODS:
                raise damaged(f"stream {number} is compressed in an unknown way")
            known = (
                inflate(stored[:stored_bytes], int(entry["raw"]), BlockMethod(method)),
                stored[stored_bytes:],
            )
            self._streams[number] = known
        return known


def section_starts(directory: Directory, masks: MaskTable) -> tuple[list[int], list[int]]:
    """Where each column's section begins in its stream, and in the noise of its stream.

    The sections of a stream lie in the order of their columns.
    """
    columns, rows = directory.columns, directory.rows
    own = columns["mask"] != NO_MASK
    counts = masks.counts[np.where(own, columns["mask"], 0)]
    numbers = np.where((columns["form"] & _LEVEL) != 0, rows, counts) * own
    noise = _ONES[columns["noise"]] + _ONES[columns["rest_noise"]]
    width = columns["width"].astype(np.int64) + columns["rest_width"]
    order = np.argsort(columns["stream"], kind="stable")
    streams = columns["stream"][order]
    first_of_stream = np.searchsorted(streams, streams)
    starts = []
    for sizes in (numbers * (width - noise), numbers * noise):
        ordered = sizes[order]
        before = np.cumsum(ordered) - ordered
        start = np.empty(len(columns), dtype=np.int64)
        start[order] = before - before[first_of_stream]
        starts.append(start)
    return starts[0].tolist(), starts[1].tolist()
