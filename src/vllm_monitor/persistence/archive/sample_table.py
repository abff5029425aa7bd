"""Samples in long form: one row for each, whatever they are stored as."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.persistence.archive.merged_samples import ScrapeMatrix
from vllm_monitor.persistence.archive.snapshot_reader import SnapshotReader, SnapshotStream
from vllm_monitor.persistence.archive.store_copy import Bounds
from vllm_monitor.persistence.samples.block_rows import BlockKind, BlockRow
from vllm_monitor.persistence.samples.blocks.loose_block import LooseBlock, decode_loose_block
from vllm_monitor.persistence.samples.sample_rows import SeriesName

__all__ = ["LongSamples", "long_samples"]


@dataclass(frozen=True, slots=True)
class LongSamples:
    """Some samples of a stream; the arrays have equal length.

    Args:
        stream: Their target and source.
        names: The series that occur.
        series: int32, place of each sample's series in ``names``.
        times_ms: Unix milliseconds.
        values: float64.
    """

    stream: SnapshotStream
    names: Sequence[SeriesName]
    series: NDArray[np.int32]
    times_ms: NDArray[np.int64]
    values: NDArray[np.float64]

    def texts(self, column: str) -> list[str]:
        """What a text column says for each of ``names``; text that is no Unicode is escaped."""
        if column in ("target", "source"):
            found = [getattr(self.stream, column)] * len(self.names)
        else:
            found = [getattr(name, column) for name in self.names]
        return [text.encode("utf-8", "backslashreplace").decode() for text in found]


def long_samples(source: SnapshotReader, bounds: Bounds, advance: Callable[[int, str], None]) -> Iterator[LongSamples]:
    """Every sample of a store in a range of time, stream by stream, a block at a time; damaged ones are left out.

    Args:
        source: The store.
        bounds: The range.
        advance: Told how many blocks and hot rows were read.
    """
    for stream in source.streams():
        for block in source.blocks(stream, bounds.start_ms, bounds.end_ms):
            parts: list[LongSamples] = []
            with source.tolerating(f"block {block.id}"):
                parts.append(_of_block(source, stream, block, bounds))
            yield from parts
            advance(1, "samples")
        for matrix in source.hot_scrapes(stream):
            yield _of_matrix(stream, matrix, bounds)
            advance(len(matrix), "samples")
        for loose in source.hot_loose(stream):
            parts = []
            with source.tolerating("single samples"):
                parts.append(_of_loose(source, stream, loose, bounds))
            yield from parts
            advance(len(np.unique(loose.sequences)), "samples")


def _of_block(source: SnapshotReader, stream: SnapshotStream, block: BlockRow, bounds: Bounds) -> LongSamples:
    if block.kind == BlockKind.LOOSE:
        return _of_loose(source, stream, decode_loose_block(block.payload), bounds)
    return _of_matrix(stream, ScrapeMatrix.of_block(source.layout_names(block.layout_id), block.payload), bounds)


def _of_matrix(stream: SnapshotStream, matrix: ScrapeMatrix, bounds: Bounds) -> LongSamples:
    matrix = matrix.rows((matrix.times_ms >= bounds.start_ms) & (matrix.times_ms <= bounds.end_ms))
    rows, columns = matrix.bits.shape
    series = np.tile(np.arange(columns, dtype=np.int32), rows)
    times = np.repeat(matrix.times_ms, columns)
    values = np.ascontiguousarray(matrix.bits).view(np.float64).reshape(-1)
    if matrix.present is not None:
        there = matrix.present.reshape(-1)
        series, times, values = series[there], times[there], values[there]
    return LongSamples(stream, matrix.names, series, times, values)


def _of_loose(source: SnapshotReader, stream: SnapshotStream, loose: LooseBlock, bounds: Bounds) -> LongSamples:
    within = (loose.times_ms >= bounds.start_ms) & (loose.times_ms <= bounds.end_ms)
    numbers, places = np.unique(loose.series_ids, return_inverse=True)
    names = source.series_names(numbers.tolist())
    series = places.astype(np.int32)[within]
    ordered = [names[int(number)] for number in numbers]
    return LongSamples(stream, ordered, series, loose.times_ms[within], loose.values[within])
