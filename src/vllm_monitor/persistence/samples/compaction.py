"""Compaction: what has become old is joined and compressed once more, slower and smaller."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from sqlalchemy import Connection, Table, delete, insert, select

from vllm_monitor.errors import StoreDamagedError, StoreUnavailableError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.config import PersistenceConfig
from vllm_monitor.persistence.maintenance.short_transactions import ShortTransactions
from vllm_monitor.persistence.samples.block_access import block_row
from vllm_monitor.persistence.samples.block_rows import BlockKind, BlockRow, RollupRow, Tier
from vllm_monitor.persistence.samples.blocks.codec import encode_block
from vllm_monitor.persistence.samples.blocks.loose_block import LooseBlock, decode_loose_block
from vllm_monitor.persistence.samples.identities import layout_of_series
from vllm_monitor.persistence.samples.matrices import join_matrices
from vllm_monitor.persistence.samples.rollup_joining import OldRollup, coarsen, join_rollups, joinable, read_rollup
from vllm_monitor.persistence.samples.rollups import MINUTE_SECONDS, TEN_MINUTES_SECONDS, rollup_row
from vllm_monitor.persistence.samples.sealing_rows import encode_loose, matrix_of_block, method_of, series_of

__all__ = ["Compacted", "Compactor"]

_LOG = logging.getLogger(__name__)

MOST_SCRAPES = 3600
MOST_LOOSE_SAMPLES = 200_000
_MOST_CELLS = 8 << 20
_DAY_MS = 86_400_000


@dataclass(slots=True)
class Compacted:
    """What compaction did: blocks and roll-ups that are new."""

    blocks: int = 0
    rollups: int = 0


class _Piece(NamedTuple):
    """A row that may be joined with its neighbours."""

    id: int
    stream_id: int
    origin_id: int
    kind: int
    tier: int
    start_ms: int
    end_ms: int
    size: int
    samples: int


class Compactor:
    """Joins what is old. For one thread at a time, which holds the maintenance lock.

    Args:
        config: Settings.
    """

    def __init__(self, config: PersistenceConfig) -> None:
        self._config = config
        self._method = method_of(config, is_cold=True)
        self._left_alone: set[tuple[str, int]] = set()

    def compact(self, hand: ShortTransactions, now_seconds: float) -> Compacted:
        """Join blocks, then roll-ups, that are old enough.

        Raises:
            StoreUnavailableError: When the store was closed meanwhile.
        """
        done = Compacted()
        cold_ms = int((now_seconds - self._config.cold_after_seconds) * 1000)
        blocks, rollups = schema.blocks, schema.rollups
        with hand.reading() as connection:
            old_blocks = _old_pieces(connection, blocks, blocks.c.kind, blocks.c.scrapes, cold_ms)
            old_rollups = _old_pieces(connection, rollups, rollups.c.step_seconds, rollups.c.buckets, cold_ms)
        waited_ms = int(cold_ms - self._config.cold_after_seconds * 1000)
        for group in _groups_of_blocks(old_blocks, waited_ms):
            done.blocks += self._join(hand, blocks, group, self._join_blocks)
        for group in _groups_of_days(old_rollups, cold_ms):
            done.rollups += self._join(hand, rollups, group, self._join_rollups)
        return done

    def _join(
        self,
        hand: ShortTransactions,
        table: Table,
        group: Sequence[_Piece],
        join: Callable[[ShortTransactions, Sequence[_Piece]], None],
    ) -> int:
        if hand.should_stop() or any((table.name, piece.id) in self._left_alone for piece in group):
            return 0
        try:
            join(hand, group)
        except StoreDamagedError as error:
            # Readers and check name what is damaged; the others of the group stay as they are.
            self._left_alone.update((table.name, piece.id) for piece in group)
            _LOG.warning("%d rows of %s are not joined: %s", len(group), table.name, error)
            return 0
        hand.rest()
        return 1

    def _join_blocks(self, hand: ShortTransactions, group: Sequence[_Piece]) -> None:
        with hand.reading() as connection:
            rows = [block_row(connection, piece.id) for piece in group]
            rows.sort(key=lambda row: row.first_sequence)
            if rows[0].kind == BlockKind.LOOSE:
                payload, layout_ids = self._joined_loose(rows), None
            else:
                layouts = [hand.store.catalogue.layout(connection, row.layout_id) for row in rows]
                matrix = join_matrices(
                    [matrix_of_block(row.payload, layout) for row, layout in zip(rows, layouts, strict=True)]
                )
                series = series_of(connection, hand, matrix.series_ids)
                layout_ids = matrix.series_ids
        if layout_ids is not None:
            payload = encode_block(
                matrix.times_ms, matrix.sequences, matrix.bits, series, method=self._method, present=matrix.present
            )
            if not matrix_of_block(payload, layout_ids).is_same_as(matrix):
                raise _not_the_same()
        with hand.writing() as connection:
            layout_id = 0 if layout_ids is None else layout_of_series(connection, rows[0].stream_id, layout_ids)
            joined = rows[0]._replace(
                tier=Tier.COLD, layout_id=layout_id,
                start_ms=min(row.start_ms for row in rows), end_ms=max(row.end_ms for row in rows),
                first_sequence=min(row.first_sequence for row in rows),
                last_sequence=max(row.last_sequence for row in rows),
                scrapes=sum(row.scrapes for row in rows), samples=sum(row.samples for row in rows), payload=payload,
            ).summed()  # fmt: skip
            _replace(connection, schema.blocks, [joined], group)

    def _joined_loose(self, rows: Sequence[BlockRow]) -> bytes:
        parts = [decode_loose_block(row.payload) for row in rows]
        fields = ("sequences", "positions", "times_ms", "series_ids", "values", "codes")
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in fields}
        starts = np.cumsum([0, *(len(part.values) for part in parts)]).tolist()
        metadata = {
            start + at: text for start, part in zip(starts, parts, strict=False) for at, text in part.metadata.items()
        }
        order = np.lexsort((columns["positions"], columns["sequences"]))
        place = np.argsort(order)
        loose = LooseBlock(
            **{name: column[order] for name, column in columns.items()},
            metadata={int(place[at]): text for at, text in metadata.items()},
        )
        payload = encode_loose(loose, self._method)
        again = decode_loose_block(payload)
        same = again.metadata == loose.metadata and all(
            getattr(again, name).tobytes() == np.ascontiguousarray(getattr(loose, name)).tobytes() for name in fields
        )
        if not same:
            raise _not_the_same()
        return payload

    def _join_rollups(self, hand: ShortTransactions, group: Sequence[_Piece]) -> None:
        table = schema.rollups
        with hand.reading() as connection:
            query = select(table).where(table.c.id.in_([piece.id for piece in group]))
            old = []
            for found in connection.execute(query):
                row = RollupRow._make(found)
                row.verify()
                layout = hand.store.catalogue.layout(connection, row.layout_id)
                old.append(OldRollup(row, layout, read_rollup(row.payload, len(layout))))
            old.sort(key=lambda one: (one.row.start_ms, one.row.id))
            joined = []
            for members in joinable(old):
                ids, rollup = join_rollups(members)
                joined.append((members, ids, rollup, series_of(connection, hand, ids)))
        with hand.writing() as connection:
            made = []
            for members, ids, rollup, series in joined:
                first = members[0].row
                layout_id = layout_of_series(connection, first.stream_id, ids, is_loose=True)
                for step_seconds, part in (
                    (MINUTE_SECONDS, rollup),
                    (TEN_MINUTES_SECONDS, coarsen(rollup, TEN_MINUTES_SECONDS)),
                ):
                    made.append(
                        rollup_row(
                            part, series, step_seconds=step_seconds, stream_id=first.stream_id,
                            origin_id=first.origin_id, layout_id=layout_id,
                            start_ms=min(one.row.start_ms for one in members),
                            end_ms=max(one.row.end_ms for one in members),
                            samples=sum(one.row.samples for one in members), method=self._method, tier=Tier.COLD,
                        )
                    )  # fmt: skip
            _replace(connection, table, made, group)


def _old_pieces(connection: Connection, table: Table, kind: object, size: object, cold_ms: int) -> list[_Piece]:
    columns = table.c
    query = (
        select(
            columns.id, columns.stream_id, columns.origin_id, kind, columns.tier, columns.start_ms, columns.end_ms,
            size, columns.samples,
        )  # type: ignore[call-overload]  # columns of different types
        .where(columns.tier == Tier.SEALED, columns.end_ms < cold_ms)
        .order_by(columns.stream_id, columns.origin_id, kind, columns.start_ms, columns.id)
    )  # fmt: skip
    return [_Piece._make(row) for row in connection.execute(query)]


def _groups_of_blocks(pieces: Sequence[_Piece], waited_ms: int) -> Iterator[list[_Piece]]:
    """Neighbours that fill a block, or that have waited for more neighbours long enough."""
    for _, alike in itertools.groupby(pieces, key=lambda piece: (piece.stream_id, piece.origin_id, piece.kind)):
        group: list[_Piece] = []
        for piece in alike:
            if group and not _fits(group, piece):
                yield group
                group = []
            group.append(piece)
        if group and (group[0].end_ms < waited_ms or not _fits(group, group[-1]._replace(size=1, samples=1))):
            yield group


def _fits(group: Sequence[_Piece], piece: _Piece) -> bool:
    if piece.start_ms - group[-1].end_ms >= _DAY_MS:
        return False
    samples = sum(one.samples for one in group) + piece.samples
    if piece.kind == BlockKind.LOOSE:
        return samples <= MOST_LOOSE_SAMPLES
    return sum(one.size for one in group) + piece.size <= MOST_SCRAPES and samples <= _MOST_CELLS


def _groups_of_days(pieces: Sequence[_Piece], cold_ms: int) -> Iterator[list[_Piece]]:
    """Roll-ups of one minute that begin on the same day, which is over for good."""
    groups: dict[tuple[int, int, int], list[_Piece]] = {}
    for piece in pieces:
        if piece.kind == MINUTE_SECONDS:
            groups.setdefault((piece.stream_id, piece.origin_id, piece.start_ms // _DAY_MS), []).append(piece)
    for (_, _, day), group in groups.items():
        if (day + 1) * _DAY_MS <= cold_ms:
            yield group


def _replace(
    connection: Connection, table: Table, made: Sequence[BlockRow | RollupRow], group: Sequence[_Piece]
) -> None:
    """Insert what was made of some rows, and delete them; inside one transaction.

    Raises:
        StoreUnavailableError: When one of them is gone.
    """
    connection.execute(insert(table), [{k: v for k, v in row._asdict().items() if k != "id"} for row in made])
    gone = connection.execute(delete(table).where(table.c.id.in_([piece.id for piece in group]))).rowcount
    if gone != len(group):
        raise StoreUnavailableError(
            "blocks were joined or deleted by somebody else at the same time", hint="It is tried again by itself."
        )


def _not_the_same() -> StoreDamagedError:
    return StoreDamagedError(
        "a joined block does not come back as the blocks it was made of", hint="They stay as they are; report this."
    )
