"""Samples on their way from one store to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence.samples.blocks.codec import block_reader
from vllm_monitor.persistence.samples.blocks.loose_block import LooseBlock
from vllm_monitor.persistence.samples.sample_rows import SeriesName

__all__ = ["ScrapeMatrix", "StreamName", "select_loose"]


@dataclass(frozen=True, slots=True)
class StreamName:
    """What names a stream across stores: the store its samples first arrived in, the target, the source."""

    origin_store_id: str
    target: str
    source: str


@dataclass(frozen=True, slots=True)
class ScrapeMatrix:
    """Scrapes of one stream, ascending by sequence; rows are scrapes, columns the series ``names``."""

    names: Sequence[SeriesName]
    times_ms: NDArray[np.int64]
    sequences: NDArray[np.int64]
    bits: NDArray[np.uint64]
    present: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.times_ms)

    @classmethod
    def of_block(cls, names: Sequence[SeriesName], payload: bytes) -> ScrapeMatrix:
        """The content of a sealed block.

        Raises:
            StoreDamagedError: When it cannot be read, or has not as many columns as there are names.
        """
        reader = block_reader(payload)
        if reader.column_count != len(names):
            raise StoreDamagedError(
                f"a block has {reader.column_count} columns, its layout {len(names)}", hint="Run vllm-monitor check."
            )
        columns = range(len(names))
        return cls(names, reader.times_ms(), reader.sequences(), reader.columns(columns), reader.present(columns))

    def rows(self, which: NDArray[Any]) -> ScrapeMatrix:
        """Some of the rows, by number or by mask."""
        present = None if self.present is None else self.present[which]
        return ScrapeMatrix(self.names, self.times_ms[which], self.sequences[which], self.bits[which], present)

    def in_order(self) -> ScrapeMatrix:
        """Ascending by sequence, each of them once."""
        _, first = np.unique(self.sequences, return_index=True)
        is_ordered = len(first) == len(self) and bool(np.all(first == np.arange(len(first))))
        return self if is_ordered else self.rows(first)

    @property
    def samples(self) -> int:
        """Cells that hold a sample."""
        return self.bits.size if self.present is None else int(np.count_nonzero(self.present))


def select_loose(loose: LooseBlock, which: NDArray[np.intp]) -> LooseBlock:
    """Some single samples, by number, with their metadata."""
    metadata = {}
    if loose.metadata:
        metadata = {at: loose.metadata[old] for at, old in enumerate(which.tolist()) if old in loose.metadata}
    return LooseBlock(
        loose.sequences[which],
        loose.positions[which],
        loose.times_ms[which],
        loose.series_ids[which],
        loose.values[which],
        loose.codes[which],
        metadata,
    )
