"""Sealing: hot rows become blocks and roll-ups.

Blocks are coded outside of any transaction. One short transaction then inserts the block and its roll-up, deletes the
rows that are in it, and makes rows that stay stand alone if they were stored as their difference from one of those.
Before that the block is decoded again and compared with its rows, so nothing is deleted that cannot be read.
Rows that are damaged stay where they are, for ``check`` to name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

from sqlalchemy import func, select

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


class Sealer:
    """Seals what is due. For one thread at a time, which holds the maintenance lock.

    Args:
        config: Settings.
    """

    def __init__(self, config: PersistenceConfig) -> None:
        self._config = config
        self._waiting: dict[int, _Waiting] = {}
        self._method = method_of(config)

    def seal(self, hand: ShortTransactions, monotonic_seconds: float, *, seal_all: bool = False) -> Sealed:
        """Seal every stream that is due, or everything.

        Args:
            hand: Transactions on the store.
            monotonic_seconds: For streams whose own times do not move.
            seal_all: Also what is not due.

        Raises:
            StoreDamagedError: When a block does not come back as its rows; they stay.
            StoreUnavailableError: When the store was closed, or changed by somebody else meanwhile.
        """
        done = Sealed()
        for stream_id, is_loose, everything in self._due(hand, monotonic_seconds, seal_all=seal_all):
            for ids in self._portions(hand, stream_id, everything=everything):
                if hand.should_stop():
                    return done
                self._seal_rows(hand, stream_id, ids, done, is_loose=is_loose)
        return done

    def _due(
        self, hand: ShortTransactions, monotonic_seconds: float, *, seal_all: bool
    ) -> list[tuple[int, bool, bool]]:
        """Stream, whether it is one of single samples, whether all of it is due or only full blocks."""
        query = select(
            _rows.c.stream_id,
            func.count(),
            func.min(_rows.c.start_ms),
            func.max(_rows.c.start_ms),
            func.min(_rows.c.id),
        ).group_by(_rows.c.stream_id)
        with hand.reading() as connection:
            found = connection.execute(query).all()
            streams = schema.streams
            is_loose = select(streams.c.id).where(streams.c.source == "")
            loose = set(connection.execute(is_loose).scalars())
        due = []
        for stream_id, count, start_ms, end_ms, oldest_id in found:
            waiting = self._waiting.setdefault(stream_id, _Waiting())
            if oldest_id != waiting.oldest_id:
                waiting.oldest_id, waiting.since = oldest_id, monotonic_seconds
            waits_seconds = max((end_ms - start_ms) / 1000, monotonic_seconds - waiting.since)
            everything = seal_all or waits_seconds >= self._config.block_seconds
            if everything or count - len(waiting.damaged) >= self._config.block_scrapes:
                due.append((stream_id, stream_id in loose, everything))
        self._waiting = {row.stream_id: self._waiting[row.stream_id] for row in found}
        return due

    def _portions(self, hand: ShortTransactions, stream_id: int, *, everything: bool) -> Iterator[list[int]]:
        """Ids of the rows of each block to be made, in order of arrival."""
        query = select(_rows.c.id).where(_rows.c.stream_id == stream_id).order_by(_rows.c.id)
        with hand.reading() as connection:
            damaged = self._waiting[stream_id].damaged
            ids = [number for number in connection.execute(query).scalars() if number not in damaged]
        size = self._config.block_scrapes
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
