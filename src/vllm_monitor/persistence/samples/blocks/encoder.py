"""Making sealed blocks."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.errors import ValueNotStorableError
from vllm_monitor.persistence.samples.blocks.directory import (
    COLUMN_TYPE,
    EXTRA_COLUMNS,
    LARGEST_CELLS,
    LARGEST_COLUMNS,
    LARGEST_ROWS,
    NO_COLUMN,
    NO_MASK,
    STREAM_TYPE,
    ColumnKind,
    Directory,
    Form,
)
from vllm_monitor.persistence.samples.blocks.grouping import HistogramColumns, plan_of
from vllm_monitor.persistence.samples.blocks.integers import BITS_GRID, Integers, to_integers
from vllm_monitor.persistence.samples.blocks.likeness import find_likenesses, regrid
from vllm_monitor.persistence.samples.blocks.masks import MaskWriter
from vllm_monitor.persistence.samples.blocks.method import BlockMethod, compress_best
from vllm_monitor.persistence.samples.blocks.relations import find_copies, find_sums, hash_moves
from vllm_monitor.persistence.samples.blocks.sections import Section, entropy_bytes, level_section, move_section
from vllm_monitor.records import Series

__all__ = ["encode_block"]

_ROWS, _REST, _FIRST_HISTOGRAM = 0, 1, 2  # groups of columns
_STREAM_BYTES = 6000  # inflated; less costs size, more costs those who read one series
_LARGEST_LEVEL = 256
_LARGEST_DICTIONARY = 256
_MOST_MODELS = 8


def encode_block(
    times_ms: NDArray[np.int64],
    sequences: NDArray[np.int64],
    bits: NDArray[np.uint64],
    series: Sequence[Series],
    *,
    method: BlockMethod = BlockMethod.ZLIB,
    present: NDArray[np.bool_] | None = None,
) -> bytes:
    """Scrapes of one stream as a sealed block.

    Args:
        times_ms: Unix milliseconds of each row, in any order.
        sequences: The place of each row in the order of arrival; ascending.
        bits: (rows, columns) of float64 bits.
        series: What the columns are; only the grouping depends on it.
        method: How the streams are compressed.
        present: (rows, columns), false where a series was missing; the bits of such cells are not kept.

    Raises:
        ValueNotStorableError: When the shapes do not fit, or are larger than a block may be.
    """
    rows = len(times_ms)
    if (
        bits.shape != (rows, len(series))
        or len(sequences) != rows
        or (present is not None and present.shape != bits.shape)
    ):
        raise ValueNotStorableError(
            f"{bits.shape} samples for {rows} times, {len(sequences)} sequences and {len(series)} series",
            hint="Pass one row per time and one column per series.",
        )
    if rows > LARGEST_ROWS or len(series) > LARGEST_COLUMNS or bits.size > LARGEST_CELLS:
        raise ValueNotStorableError(
            f"a block cannot hold {rows} scrapes of {len(series)} series", hint="Make several blocks of fewer scrapes."
        )
    encoder = _Encoder(rows, series)
    encoder.add_rows(times_ms, sequences)
    if rows:
        encoder.add_columns(bits, present)
    return encoder.finish(method)


class _Encoder:
    """One block in the making."""

    def __init__(self, rows: int, series: Sequence[Series]) -> None:
        self._rows = rows
        self._plan = plan_of(series)
        columns = np.zeros(len(series) + EXTRA_COLUMNS, dtype=COLUMN_TYPE)
        columns["mask"] = NO_MASK
        self._columns = columns
        self._masks = MaskWriter()
        self._sections: dict[int, Section] = {}
        self._group_of = {
            column: _FIRST_HISTOGRAM + number
            for number, histogram in enumerate(self._plan.histograms)
            for column in (*histogram.buckets, histogram.count, histogram.total)
        }
        self._dictionary: dict[int, NDArray[np.uint64]] = {}

    def add_rows(self, times_ms: NDArray[np.int64], sequences: NDArray[np.int64]) -> None:
        """When each row was scraped, and when it arrived."""
        first = len(self._columns) - EXTRA_COLUMNS
        for column, given in ((first, times_ms), (first + 1, sequences)):
            self._group_of[column] = _ROWS
            integers = np.ascontiguousarray(given, dtype=np.int64)
            slope = int(np.median(np.diff(integers))) if len(integers) > 1 else 0
            level = integers - np.arange(len(integers), dtype=np.int64) * np.int64(slope)
            self._columns["slope"][column] = slope
            self._add_numbers(column, level, np.diff(level), 0)

    def add_columns(self, bits: NDArray[np.uint64], present: NDArray[np.bool_] | None) -> None:
        """The samples."""
        by_column = np.ascontiguousarray(bits.T)
        if present is not None and not present.all():
            by_column = self._fill_absent(by_column, np.ascontiguousarray(present.T))
        columns = self._columns
        columns["base"][: len(by_column)] = by_column[:, 0]
        changing = np.flatnonzero((by_column[:, 1:] != by_column[:, :1]).any(axis=1))
        columns["kind"][changing] = ColumnKind.NUMBERS
        if len(changing):
            self._add_changing(changing, by_column[changing])

    def _fill_absent(self, by_column: NDArray[np.uint64], present: NDArray[np.bool_]) -> NDArray[np.uint64]:
        """Absent cells repeat the last present one (the first ones: the first), so that they cost nothing."""
        some = np.flatnonzero(~present.all(axis=1))
        for column in some.tolist():
            mask = present[column]
            self._columns["present"][column] = self._masks.number_of(mask)
            where = np.flatnonzero(mask)
            if not len(where):
                by_column[column] = 0
                continue
            last = np.maximum.accumulate(np.where(mask, np.arange(self._rows), 0))
            last[: where[0]] = where[0]
            by_column[column] = by_column[column][last]
        return by_column

    def _add_changing(self, numbers: NDArray[np.int64], bits: NDArray[np.uint64]) -> None:
        columns = self._columns
        integers, grids = to_integers(bits)
        moves = np.diff(integers, axis=1)
        hashes = hash_moves(moves)
        place = {column: index for index, column in enumerate(numbers.tolist())}
        columns["grid"][numbers] = grids
        columns["base"][numbers] = integers[:, 0].view(np.uint64)

        order = [place[column] for column in self._plan.precedence if column in place]
        copies = find_copies(moves, hashes, grids, order)
        for copy, source in copies.items():
            self._refer(int(numbers[copy]), ColumnKind.COPY, int(numbers[source]), 0)
        own = {index for index in order if index not in copies}
        own -= self._add_histograms(numbers, moves, grids, place, own)
        # What others are copies of must move on its grid.
        own -= self._add_dictionaries(numbers, bits, grids, own - set(copies.values()))

        on_grid = [index for index in sorted(own) if grids[index] != BITS_GRID]
        costs = np.zeros(len(moves))
        costs[on_grid] = np.log2(1.0 + np.abs(moves[on_grid].astype(np.float64))).sum(axis=1)
        by_grid: dict[int, list[int]] = {}
        for index in on_grid:
            by_grid.setdefault(int(grids[index]), []).append(index)
        for group in by_grid.values():
            for index, (one, other, minus) in find_sums(moves, hashes, group, costs).items():
                own.discard(index)
                column = int(numbers[index])
                self._refer(column, ColumnKind.SUM, int(numbers[one]), int(numbers[other]))
                columns["form"][column] = Form.MINUS if minus else 0

        on_grid = [index for index in sorted(own) if grids[index] != BITS_GRID]
        alike = find_likenesses(moves, grids, on_grid)
        for index in sorted(own):
            column, grid = int(numbers[index]), int(grids[index])
            taken = [source for source in alike.get(index, ()) if source >= 0]
            if taken:
                left = moves[index] - sum(regrid(moves[source], int(grids[source]), grid) for source in taken)
                sources = [int(numbers[source]) for source in taken]
                self._refer(column, ColumnKind.BESIDE, *(sources if len(sources) == 2 else (*sources, NO_COLUMN)))
                self._add_section(column, move_section(left, grid, self._masks))
            else:
                self._add_numbers(column, integers[index], moves[index], grid)

    def _refer(self, column: int, kind: ColumnKind, source: int, other: int) -> None:
        columns = self._columns
        columns["kind"][column], columns["source"][column], columns["other"][column] = kind, source, other

    def _add_dictionaries(
        self, numbers: NDArray[np.int64], bits: NDArray[np.uint64], grids: NDArray[np.int16], own: set[int]
    ) -> set[int]:
        """Gauges of few values that are no whole numbers: a share of something, mostly."""
        added = set()
        for index in sorted(own):
            if not grids[index] or not _swings(bits[index]):
                continue
            entries, which = np.unique(bits[index], return_inverse=True)
            if len(entries) > min(_LARGEST_DICTIONARY, self._rows // 8):
                continue
            column = int(numbers[index])
            places = which.astype(np.int64)
            self._columns["grid"][column] = 0
            self._columns["other"][column] = len(entries)
            self._add_numbers(column, places, np.diff(places), 0)
            self._columns["form"][column] |= Form.DICTIONARY
            self._dictionary[column] = entries
            added.add(index)
        return added

    def _add_numbers(self, column: int, integers: Integers, moves: Integers, grid: int) -> None:
        columns = self._columns
        columns["kind"][column] = ColumnKind.NUMBERS
        if len(integers):
            columns["base"][column] = integers[:1].view(np.uint64)[0]
        section = move_section(moves, grid, self._masks)
        if len(integers) and int(moves.min(initial=0)) < 0:
            section = self._or_level(column, integers, moves, section)
        self._add_section(column, section)

    def _or_level(self, column: int, integers: Integers, moves: Integers, section: Section) -> Section:
        """A gauge that swings within a small range costs less as its level than as its moves."""
        lowest, highest = int(integers.min()), int(integers.max())
        if highest - lowest >= _LARGEST_LEVEL:
            return section
        if entropy_bytes(integers) < entropy_bytes(moves):
            self._columns["base"][column] = np.array([lowest]).view(np.uint64)[0]
            return level_section(integers)
        return section

    def _add_histograms(
        self,
        numbers: NDArray[np.int64],
        moves: NDArray[np.int64],
        grids: NDArray[np.int16],
        place: dict[int, int],
        own: set[int],
    ) -> set[int]:
        """The buckets that are no copies; they are returned."""
        added: set[int] = set()
        models: dict[tuple[float, ...], list[tuple[int, ...]]] = {}
        for histogram in self._plan.histograms:
            members = [place[bucket] for bucket in histogram.buckets if place.get(bucket) in own]
            whole = [index for index in members if not grids[index]]
            for index in set(members) - set(whole):
                self._add_section(int(numbers[index]), move_section(moves[index], 0, self._masks))
                self._refer(int(numbers[index]), ColumnKind.BESIDE, NO_COLUMN, NO_COLUMN)
            added.update(members)
            if not whole:
                continue
            earlier = models.setdefault(histogram.bounds, [])
            count = place.get(histogram.count, -1)
            if count >= 0 and grids[count]:
                count = -1
            self._add_buckets(histogram, [int(numbers[index]) for index in whole], count, moves, place, earlier)
            earlier.append(histogram.buckets)
        return added

    def _add_buckets(
        self,
        histogram: HistogramColumns,
        names: list[int],
        count: int,
        moves: NDArray[np.int64],
        place: dict[int, int],
        models: list[tuple[int, ...]],
    ) -> None:
        """Buckets are cumulative: what counts is how many observations fell between one and the next.

        Where a histogram of the same bounds says nearly the same, what counts is where they differ.
        """
        own = moves[[place[name] for name in names]]
        between = np.diff(own, axis=0, prepend=0)
        if count >= 0:
            between = np.concatenate((between, (moves[count] - own[-1])[None]))
        # What falls between the count and all other parts need not be stored: the largest part is left out.
        left_out = len(names) if count < 0 else int(np.abs(between).sum(axis=1).argmax())
        best = sum(entropy_bytes(part) for index, part in enumerate(between) if index != left_out)
        best_model: tuple[list[int], NDArray[np.int64]] | None = None
        positions = [histogram.buckets.index(name) for name in names]
        for model in models[-_MOST_MODELS:]:
            sources = [model[position] for position in positions]
            if any(source not in place for source in sources):
                continue
            left = own - moves[[place[source] for source in sources]]
            cost = sum(entropy_bytes(part) for part in left)
            if cost < best:
                best, best_model = cost, (sources, left)
        if best_model is not None:
            sources, left = best_model
            active = (left != 0).any(axis=0)
            for column, source, part in zip(names, sources, left, strict=True):
                self._refer(column, ColumnKind.BESIDE, source, NO_COLUMN)
                self._add_section(column, move_section(part, 0, self._masks, active))
            return
        active = (between != 0).any(axis=0)
        for index, column in enumerate(names):
            if index < left_out:
                self._refer(column, ColumnKind.BESIDE, names[index - 1] if index else NO_COLUMN, NO_COLUMN)
                self._add_section(column, move_section(between[index], 0, self._masks, active))
            else:
                above = names[index + 1] if index + 1 < len(names) else histogram.count
                self._refer(column, ColumnKind.BESIDE, above, NO_COLUMN)
                self._add_section(column, move_section(between[index + 1], 0, self._masks, active))
                self._columns["form"][column] |= Form.MINUS

    def _add_section(self, column: int, section: Section) -> None:
        columns = self._columns
        columns["form"][column] |= section.form
        columns["quantum"][column] = section.quantum
        columns["mask"][column] = section.mask
        columns["width"][column], columns["noise"][column] = section.planes.width, section.planes.noise
        columns["rest_width"][column], columns["rest_noise"][column] = section.rest.width, section.rest.noise
        self._sections[column] = section

    def finish(self, method: BlockMethod) -> bytes:
        """The bytes of the block."""
        mask_table, packed_masks = self._masks.to_bytes()
        streams = [([packed_masks], b"", min(method, BlockMethod.ZLIB))]  # read with every series: quickly
        for columns in self._columns_by_stream():
            self._columns["stream"][columns] = len(streams)
            own = [self._sections[column] for column in columns]
            noise = b"".join(section.noise_bytes for section in own)
            streams.append(([section.packed_bytes for section in own], noise, method))
        table = []
        body = []
        for sections, noise, wanted in streams:
            stored, used = compress_best(sections, wanted)
            checksum = zlib.crc32(noise, zlib.crc32(stored))
            table.append((len(stored), sum(map(len, sections)), len(noise), checksum, used))
            body += [stored, noise]
        dictionaries = [self._dictionary[column] for column in sorted(self._dictionary)]
        directory = Directory(
            rows=self._rows,
            columns=self._columns,
            streams=np.array(table, dtype=STREAM_TYPE),
            masks=mask_table,
            dictionary=np.concatenate([np.zeros(0, dtype="<u8"), *dictionaries]),
        )
        return directory.to_bytes(method) + b"".join(body)

    def _columns_by_stream(self) -> list[list[int]]:
        """Columns that share a stream: the buckets of a histogram; the others of a group, some thousand bytes each."""
        streams: dict[tuple[int, bool, int], list[int]] = {}
        taken: dict[tuple[int, bool], int] = {}
        buckets = {bucket for histogram in self._plan.histograms for bucket in histogram.buckets}
        for column in sorted(self._sections):
            group = self._group_of.get(column, _REST), column in buckets
            number = 0 if group[1] else taken.get(group, 0) // _STREAM_BYTES
            taken[group] = taken.get(group, 0) + len(self._sections[column].packed_bytes)
            streams.setdefault((*group, number), []).append(column)
        return [streams[key] for key in sorted(streams)]


def _swings(bits: NDArray[np.uint64]) -> bool:
    """Whether a column goes down at all: one that does not has too many values for a dictionary."""
    values = bits.view(np.float64)
    return bool((values[1:] < values[:-1]).any())
