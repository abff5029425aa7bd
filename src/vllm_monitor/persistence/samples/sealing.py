"""Sealing: hot rows become blocks and roll-ups.

Blocks are coded outside of any transaction. One short transaction then inserts the block and its roll-up, deletes the
rows that are in it, and makes rows that stay stand alone if they were stored as their difference from one of those.
Before that the block is decoded again and compared with its rows, so nothing is deleted that cannot be read.
Rows that are damaged stay where they are, for ``check`` to name.

Rows that are too old to be kept go into blocks of their own, which retention then deletes whole: a sample that arrives
with an old time would otherwise live as long as the new ones beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import case, func, select

from vllm_monitor.persistence import schema
from vllm_monitor.persistence.config import PersistenceConfig
from vllm_monitor.persistence.maintenance.short_transactions import ShortTransactions
from vllm_monitor.persistence.samples.loose_sealing import seal_loose
from vllm_monitor.persistence.samples.scrape_sealing import seal_scrapes
from vllm_monitor.persistence.samples.sealing_rows import method_of

__all__ = ["Sealed", "Sealer"]

_LOG = logging.getLogger(__name__)

_rows = schema.metrics


@dataclass(slots=True)
class Sealed:
    """What sealing did.

    Args:
        blocks: Blocks made.
        samples: Samples in them.
        damaged: Rows that were left because they cannot be read.
    """

    blocks: int = 0
    samples: int = 0
    damaged: int = 0


@dataclass(slots=True)
class _Waiting:
    """Hot rows of a stream, as last looked at."""

    oldest_id: int = 0
    since: float = 0.0
    damaged: set[int] = field(default_factory=set)


class _Due(NamedTuple):
    """A stream with rows to be sealed: all of them, or those that fill blocks and those that have expired."""

    stream_id: int
    is_loose: bool
    everything: bool


class Sealer:
    """Seals what is due. For one thread at a time, which holds the maintenance lock.

    Args:
        config: Settings.
    """

    def __init__(self, config: PersistenceConfig) -> None:
        self._config = config
        self._waiting: dict[int, _Waiting] = {}
        self._method = method_of(config)

    def seal(
        self, hand: ShortTransactions, monotonic_seconds: float, *, expired_ms: int, seal_all: bool = False
    ) -> Sealed:
        """Seal every stream that is due, or everything.

        Args:
            hand: Transactions on the store.
            monotonic_seconds: For streams whose own times do not move.
            expired_ms: Rows that end before it are due, by themselves; unix milliseconds.
            seal_all: Also what is not due.

        Raises:
            StoreDamagedError: When a block does not come back as its rows; they stay.
            StoreUnavailableError: When the store was closed, or changed by somebody else meanwhile.
        """
        done = Sealed()
        for due in self._due(hand, monotonic_seconds, expired_ms, seal_all=seal_all):
            for ids in self._portions(hand, due, expired_ms):
                if hand.should_stop():
                    return done
                self._seal_rows(hand, due.stream_id, ids, done, is_loose=due.is_loose)
        return done

    def _due(self, hand: ShortTransactions, monotonic_seconds: float, expired_ms: int, *, seal_all: bool) -> list[_Due]:
        # The age of what has expired says nothing about the rest, whose time has not come by it.
        kept = _rows.c.end_ms >= expired_ms
        query = select(
            _rows.c.stream_id,
            func.count(),
            func.count(case((kept, 1))),
            func.min(case((kept, _rows.c.start_ms))),
            func.max(case((kept, _rows.c.start_ms))),
            func.min(_rows.c.id),
        ).group_by(_rows.c.stream_id)
        with hand.reading() as connection:
            found = connection.execute(query).all()
            streams = schema.streams
            is_loose = select(streams.c.id).where(streams.c.source == "")
            loose = set(connection.execute(is_loose).scalars())
        due = []
        for stream_id, count, kept_count, start_ms, end_ms, oldest_id in found:
            waiting = self._waiting.setdefault(stream_id, _Waiting())
            if oldest_id != waiting.oldest_id:
                waiting.oldest_id, waiting.since = oldest_id, monotonic_seconds
            spans_seconds = (end_ms - start_ms) / 1000 if kept_count else 0.0
            waits_seconds = max(spans_seconds, monotonic_seconds - waiting.since)
            everything = seal_all or waits_seconds >= self._config.block_seconds
            is_full = kept_count - len(waiting.damaged) >= self._config.block_scrapes
            if everything or is_full or kept_count < count:
                due.append(_Due(stream_id, stream_id in loose, everything))
        self._waiting = {row.stream_id: self._waiting[row.stream_id] for row in found}
        return due

    def _portions(self, hand: ShortTransactions, due: _Due, expired_ms: int) -> Iterator[list[int]]:
        """Ids of the rows of each block to be made, in order of arrival; those that have expired first."""
        is_expired = _rows.c.end_ms < expired_ms
        query = select(_rows.c.id, is_expired).where(_rows.c.stream_id == due.stream_id).order_by(_rows.c.id)
        expired: list[int] = []
        kept: list[int] = []
        with hand.reading() as connection:
            damaged = self._waiting[due.stream_id].damaged
            for number, is_old in connection.execute(query):
                if number not in damaged:
                    (expired if is_old else kept).append(number)
        size = self._config.block_scrapes
        for ids, everything in ((expired, True), (kept, due.everything)):
            for at in range(0, len(ids), size):
                if everything or at + size <= len(ids):
                    yield ids[at : at + size]

    def _seal_rows(
        self, hand: ShortTransactions, stream_id: int, ids: list[int], done: Sealed, *, is_loose: bool
    ) -> None:
        """Seal rows; into several blocks when they do not fit into one."""
        seal_part = seal_loose if is_loose else seal_scrapes
        while ids:
            part = seal_part(hand, stream_id, ids, self._method)
            damaged = set(ids) - set(part.readable_ids)
            if damaged:
                _LOG.warning("%d damaged rows of stream %d cannot be sealed and stay", len(damaged), stream_id)
                self._waiting[stream_id].damaged |= damaged
                done.damaged += len(damaged)
            if part.sealed_ids:
                done.blocks += 1
                done.samples += part.samples
            ids = part.readable_ids[len(part.sealed_ids) :]
            hand.rest()
