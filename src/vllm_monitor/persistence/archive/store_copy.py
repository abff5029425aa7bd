"""What one store holds copied into another through a merger: the way out into an archive, and the way back in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, func, select

from vllm_monitor.errors import ConfigurationError, StoreDamagedError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.archive.archive_reports import Progress
from vllm_monitor.persistence.archive.merge import StoreMerger
from vllm_monitor.persistence.archive.merge_rollups import NO_BUCKETS, Buckets, NewRollup, bucket_starts
from vllm_monitor.persistence.archive.merged_samples import ScrapeMatrix, StreamName, select_loose
from vllm_monitor.persistence.archive.snapshot_reader import SnapshotReader, SnapshotStream
from vllm_monitor.persistence.codecs.arguments import checked_time
from vllm_monitor.persistence.codecs.sample_values import LATEST_SECONDS
from vllm_monitor.persistence.config import PersistenceConfig
from vllm_monitor.persistence.models.model_store import ModelStore
from vllm_monitor.persistence.records.rare_kinds import ALL_KINDS
from vllm_monitor.persistence.samples.block_rows import BlockKind, BlockRow
from vllm_monitor.persistence.samples.blocks.loose_block import LooseBlock, decode_loose_block
from vllm_monitor.persistence.samples.rollups import MINUTE_SECONDS
from vllm_monitor.persistence.sql_store import OWN_ORIGIN

__all__ = ["Bounds", "StoreCopier", "copy_models", "counts_of"]

_EARLIEST_MS, _LATEST_MS = -(1 << 62), 1 << 62


@dataclass(frozen=True, slots=True)
class Bounds:
    """A range of time, unix seconds, both ends included; ``None`` is open."""

    start_time: float | None = None
    end_time: float | None = None

    @classmethod
    def checked(cls, start_time: float | None, end_time: float | None) -> Bounds:
        """The range, if it is one.

        Raises:
            ConfigurationError: When it is empty, or its ends are no times.
        """
        start_time, end_time = checked_time(start_time, "start_time"), checked_time(end_time, "end_time")
        for time in (start_time, end_time):
            if time is not None and abs(time) > LATEST_SECONDS:
                raise ConfigurationError(f"{time} is no time", hint="Pass unix seconds, or None for no limit.")
        if start_time is not None and end_time is not None and start_time > end_time:
            raise ConfigurationError("start_time is after end_time", hint="Exchange the two.")
        return cls(start_time, end_time)

    @property
    def start_ms(self) -> int:
        """The first millisecond in the range."""
        return _EARLIEST_MS if self.start_time is None else round(self.start_time * 1000)

    @property
    def end_ms(self) -> int:
        """The last millisecond in the range."""
        return _LATEST_MS if self.end_time is None else round(self.end_time * 1000)

    def holds(self, start_ms: int, end_ms: int) -> bool:
        """Whether all of a range is in this one."""
        return self.start_ms <= start_ms and end_ms <= self.end_ms


@dataclass(slots=True)
class StoreCopier:
    """Copies samples and records. Use it once.

    Args:
        source: Where from.
        merger: Where to.
        bounds: Records by their timestamp, samples by their time; counts of expired predictions are all copied.
        progress: Told how far it is.
        added: What was new, by table.
    """

    source: SnapshotReader
    merger: StoreMerger
    bounds: Bounds = field(default_factory=Bounds)
    progress: Progress | None = None
    added: dict[str, int] = field(default_factory=dict)
    _done: int = 0
    _total: int = 0

    def run(self) -> None:
        """Copy everything: records first, which are few and matter most.

        Raises:
            StoreDamagedError: When a strict source is damaged.
            StoreUnavailableError: When the destination cannot be written.
        """
        counted = [schema.metadata.tables[kind.table] for kind in ALL_KINDS]
        counted += [schema.prediction_scores, schema.blocks, schema.rollups, schema.metrics]
        self._total = sum(self.source.count(table) for table in counted)
        self._copy_records()
        self.added |= {"samples": 0, "rollup_buckets": 0}
        for stream in self.source.streams():
            self._copy_samples(stream)

    def _copy_records(self) -> None:
        for kind in ALL_KINDS:
            self.added[kind.table] = 0
            for rows, seen in self.source.records(kind, self.bounds.start_time, self.bounds.end_time):
                self._added(kind.table, self.merger.add_records(kind, rows))
                self._advance(seen, kind.table)
        self.added["prediction_scores"] = 0
        for by_origin in self.source.prediction_scores():
            for store_id, rows in by_origin.items():
                self._added("prediction_scores", self.merger.add_prediction_scores(store_id, rows))
                self._advance(len(rows), "prediction_scores")

    def _copy_samples(self, stream: SnapshotStream) -> None:
        """Coarse roll-ups, blocks, those of one minute; last what is not sealed, which gets its roll-ups here."""
        rollups = self._rollups_of(stream)
        covered = {
            origin_id: np.unique(np.concatenate([bucket_starts(rollup.row) for rollup in group]))
            for (origin_id, step_seconds), group in rollups.items()
            if step_seconds == MINUTE_SECONDS
        }
        self._copy_rollups(stream, {key: group for key, group in rollups.items() if key[1] != MINUTE_SECONDS})
        for block in self.source.blocks(stream, self.bounds.start_ms, self.bounds.end_ms):
            with self.source.tolerating(f"block {block.id}"):
                self._added("samples", self._copy_block(stream, block, covered.get(block.origin_id, NO_BUCKETS)))
            self._advance(1, "samples")
        self._copy_rollups(stream, {key: group for key, group in rollups.items() if key[1] == MINUTE_SECONDS})
        own = self.source.name_of(stream, OWN_ORIGIN)
        for matrix in self.source.hot_scrapes(stream):
            self._added("samples", self.merger.add_scrape_matrix(own, self._within(matrix)))
            self._advance(len(matrix), "samples")
        for loose in self.source.hot_loose(stream):
            with self.source.tolerating("single samples"):
                self._added("samples", self._copy_loose(own, loose, NO_BUCKETS))
            self._advance(len(np.unique(loose.sequences)), "samples")

    def _rollups_of(self, stream: SnapshotStream) -> dict[tuple[int, int], list[NewRollup]]:
        """The roll-ups of a stream that are readable and in the range, by origin and step."""
        found: dict[tuple[int, int], list[NewRollup]] = {}
        for row in self.source.rollups(stream, self.bounds.start_ms, self.bounds.end_ms):
            with self.source.tolerating(f"roll-up {row.id}"):
                self.source.origin(row.origin_id)
                whole = NewRollup(self.source.layout_names(row.layout_id), row)
                parts = self.merger.rollups_within(whole, self.bounds.start_ms, self.bounds.end_ms)
                found.setdefault((row.origin_id, row.step_seconds), []).extend(parts)
        return {key: parts for key, parts in found.items() if parts}

    def _copy_rollups(self, stream: SnapshotStream, rollups: Mapping[tuple[int, int], Sequence[NewRollup]]) -> None:
        for (origin_id, step_seconds), group in rollups.items():
            buckets = self.merger.add_rollups(self.source.name_of(stream, origin_id), step_seconds, group)
            self._added("rollup_buckets", buckets)
            self._advance(len(group), "rollups")

    def _copy_block(self, stream: SnapshotStream, block: BlockRow, covered: Buckets) -> int:
        name = self.source.name_of(stream, block.origin_id)
        if block.kind == BlockKind.LOOSE:
            return self._copy_loose(name, decode_loose_block(block.payload), covered)
        names = self.source.layout_names(block.layout_id)
        if self.bounds.holds(block.start_ms, block.end_ms):
            return self.merger.add_scrape_block(name, names, block, covered)
        return self.merger.add_scrape_matrix(name, self._within(ScrapeMatrix.of_block(names, block.payload)), covered)

    def _copy_loose(self, name: StreamName, loose: LooseBlock, covered: Buckets) -> int:
        names = self.source.series_names(np.unique(loose.series_ids).tolist())
        within = select_loose(loose, np.flatnonzero(self._in_time(loose.times_ms)))
        return self.merger.add_loose_samples(name, names, within, covered)

    def _added(self, what: str, number: int) -> None:
        self.added[what] = self.added.get(what, 0) + number

    def _within(self, matrix: ScrapeMatrix) -> ScrapeMatrix:
        within = self._in_time(matrix.times_ms)
        return matrix if within.all() else matrix.rows(within)

    def _in_time(self, times_ms: NDArray[np.int64]) -> NDArray[np.bool_]:
        return (times_ms >= self.bounds.start_ms) & (times_ms <= self.bounds.end_ms)

    def _advance(self, rows: int, what: str) -> None:
        self._done += rows
        if self.progress is not None:
            self.progress(min(self._done, self._total), self._total, what)


def counts_of(connection: Connection) -> dict[str, int]:
    """How much of what is in a store without unsealed rows: samples, and rows by table."""
    blocks = schema.blocks
    samples = connection.execute(select(func.coalesce(func.sum(blocks.c.samples), 0))).scalar_one()
    counts = {"samples": int(samples)}
    for name in (*(kind.table for kind in ALL_KINDS), "prediction_scores", "blocks", "rollups", "models"):
        table = schema.metadata.tables[name]
        counts[name] = int(connection.execute(select(func.count()).select_from(table)).scalar_one())
    return counts


def copy_models(
    connection: Connection,
    models: ModelStore,
    merger: StoreMerger,
    config: PersistenceConfig,
    on_damage: Callable[[str, Exception], None],
) -> int:
    """Copy every version of every model; the number that was new.

    Args:
        connection: To the store they come from.
        models: Its models.
        merger: Where to.
        config: Settings of where to.
        on_damage: Told of a version that cannot be read; it may raise.
    """
    added = 0
    rows = models.rows(connection)
    for row in sorted(rows, key=lambda row: (row["model_name"], -row["version"])):
        try:
            arrays = models.arrays_of(connection, row)
        except (StoreDamagedError, OSError) as error:
            # The view of a live store outlives files of versions that became too old meanwhile.
            if not (isinstance(error, FileNotFoundError) and models.is_gone(connection.engine, row)):
                on_damage(f"version {row['version']} of a model", error)
        else:
            added += merger.add_model(config, row, arrays)
    return added
