"""Which buckets of a stream have a roll-up in a store, and which samples are behind them."""

from __future__ import annotations

import logging
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, select

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.archive.merge_session import Place
from vllm_monitor.persistence.samples.block_rows import RollupRow, Tier
from vllm_monitor.persistence.samples.rollup_codec import Rollup, RollupReader
from vllm_monitor.persistence.samples.rollups import MINUTE_SECONDS
from vllm_monitor.persistence.sql_store import OWN_ORIGIN

__all__ = ["NO_BUCKETS", "Buckets", "Integers", "KnownRollups", "is_behind", "reader_of"]

Integers = NDArray[np.int64]
Buckets = NDArray[np.int64]
"""Unix milliseconds at which buckets begin."""

NO_BUCKETS: Buckets = np.empty(0, dtype=np.int64)

_LOG = logging.getLogger(__name__)
_MOST_REMEMBERED = 4096


def reader_of(payload: bytes) -> RollupReader:
    """A roll-up that is in memory.

    Raises:
        StoreDamagedError: When it cannot be read.
    """
    return RollupReader(lambda offset, length: payload[offset : offset + length], len(payload))


def is_behind(known: Rollup, buckets: Buckets, sequences: Integers) -> NDArray[np.bool_]:
    """Which samples are counted by a roll-up, from their buckets and their sequences."""
    at = np.minimum(np.searchsorted(known.bucket_ms, buckets), len(known.bucket_ms) - 1)
    found = (known.bucket_ms[at] == buckets) & (sequences >= known.first_sequence)
    return np.asarray(found & (sequences <= known.last_sequences[at]), dtype=np.bool_)


class KnownRollups:
    """Looks into the roll-ups of a store, which are remembered by number and checksum: a number may be given again."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, int], Rollup | None] = OrderedDict()

    def rollups(self, connection: Connection, place: Place, step_seconds: int, wanted: Buckets) -> list[Rollup]:
        """The roll-ups of a step near some buckets (at least one), without their columns."""
        of_step = schema.rollups.c.step_seconds == step_seconds
        return self._found(connection, place, of_step, *_range(wanted, step_seconds))

    def buckets(self, connection: Connection, place: Place, step_seconds: int, wanted: Buckets) -> Buckets:
        """Buckets near those wanted that have a roll-up here, or will have one when hot rows are sealed."""
        step_ms = step_seconds * 1000
        start_ms, end_ms = _range(wanted, step_seconds)
        origin_id, stream_id = place
        table = schema.rollups
        of_step = table.c.step_seconds == step_seconds
        if step_seconds > MINUTE_SECONDS:
            # Those of one minute that are not compacted yet become coarser ones when they are.
            of_step |= (table.c.step_seconds == MINUTE_SECONDS) & (table.c.tier == Tier.SEALED)
        rollups = self._found(connection, place, of_step, start_ms, end_ms)
        found = [rollup.bucket_ms // step_ms * step_ms for rollup in rollups]
        if origin_id == OWN_ORIGIN:
            hot = schema.metrics
            times = select(hot.c.start_ms, hot.c.end_ms).where(
                hot.c.stream_id == stream_id, hot.c.start_ms <= end_ms, hot.c.end_ms >= start_ms
            )
            rows = connection.execute(times).all()
            found.append(np.array([time for row in rows for time in row], dtype=np.int64) // step_ms * step_ms)
        return np.unique(np.concatenate(found)) if found else NO_BUCKETS

    def _found(
        self, connection: Connection, place: Place, of_step: ColumnElement[bool], start_ms: int, end_ms: int
    ) -> list[Rollup]:
        table = schema.rollups
        origin_id, stream_id = place
        query = select(table.c.id, table.c.checksum).where(
            table.c.stream_id == stream_id,
            of_step,
            table.c.start_ms <= end_ms,
            table.c.end_ms >= start_ms,
            table.c.origin_id == origin_id,
        )
        found = [self._rollup(connection, row.id, row.checksum) for row in connection.execute(query).all()]
        return [rollup for rollup in found if rollup is not None]

    def _rollup(self, connection: Connection, rollup_id: int, checksum: int) -> Rollup | None:
        key = rollup_id, checksum
        if key not in self._known:
            row = connection.execute(select(schema.rollups).where(schema.rollups.c.id == rollup_id)).one()
            try:
                self._known[key] = reader_of(RollupRow._make(row).payload).read([])
            except StoreDamagedError as error:
                # What cannot be read is not here: merging it in again mends the store.
                _LOG.warning("roll-up %d is damaged: %s", rollup_id, error)
                self._known[key] = None
        known = self._known[key]
        if len(self._known) > _MOST_REMEMBERED:
            self._known.popitem(last=False)
        return known


def _range(wanted: Buckets, step_seconds: int) -> tuple[int, int]:
    return int(wanted.min()), int(wanted.max()) + step_seconds * 1000 - 1
