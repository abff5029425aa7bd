"""What reading the store returns, beside records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.records import Series

__all__ = ["MaintenanceReport", "SeriesData", "StoreHealth"]


@dataclass(frozen=True, slots=True, eq=False)
class SeriesData:
    """The samples of one series in a range of time.

    Args:
        target: The server's URL; empty for samples saved without one.
        metric_type: ``performance``, ``resource``, ``custom``, ``monitor`` or what the sample was saved with.
        series: Name and labels.
        tags: The labels as they were saved.
        timestamps_ms: Unix milliseconds, int64, ascending; equal times are all kept, in order of arrival.
        values: float64 of each.
    """

    target: str
    metric_type: str
    series: Series
    tags: Mapping[str, Any]
    timestamps_ms: NDArray[np.int64]
    values: NDArray[np.float64]

    @property
    def name(self) -> str:
        """The metric name, as on the page."""
        return self.series.name

    def __len__(self) -> int:
        return len(self.timestamps_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreHealth:
    """How the store is doing.

    Args:
        ok: Nothing needs attention.
        degraded: The store cannot be written now; records are held in bounded memory and retried.
        message: What is wrong, in one sentence; empty when nothing is.
        hint: What to do about it.
        not_durable: Rare records that are held in memory only.
        queued: Samples and rare records on their way to the store.
        dropped: What did not fit into memory while the store could not be written, by kind (``samples``,
            ``scrapes``, ``records``, ``requests``), and what was given to a closed store (``closed``).
        damaged_rows: Stored rows whose checksum or form was wrong and that were skipped, since start.
        replaced_values: Objects that ``enqueue_*`` could not store and replaced by their ``repr``.
        quarantined: Damaged database files that were renamed and kept.
    """

    ok: bool
    degraded: bool
    message: str = ""
    hint: str = ""
    not_durable: int = 0
    queued: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    damaged_rows: int = 0
    replaced_values: int = 0
    quarantined: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MaintenanceReport:
    """What one step of maintenance did.

    Args:
        sealed_blocks: Blocks made of hot rows.
        sealed_samples: Samples in them.
        damaged_rows: Hot rows that were left as they are because they cannot be read.
        joined_blocks: Blocks made of several old ones.
        joined_rollups: Days of roll-ups that were joined.
        deleted: What was too old, by kind: samples as ``metrics``, the others by their table.
        freed_bytes: By how much the file shrank.
    """

    sealed_blocks: int = 0
    sealed_samples: int = 0
    damaged_rows: int = 0
    joined_blocks: int = 0
    joined_rollups: int = 0
    deleted: Mapping[str, int] = field(default_factory=dict)
    freed_bytes: int = 0
