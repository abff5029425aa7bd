"""Which samples of an origin are in a store already."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, select

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.archive.merge_session import Place
from vllm_monitor.persistence.samples.block_rows import BlockKind
from vllm_monitor.persistence.samples.blocks.codec import block_reader
from vllm_monitor.persistence.samples.blocks.loose_block import decode_loose_block
from vllm_monitor.persistence.samples.scrape_codec import LOOSE
from vllm_monitor.persistence.sql_store import OWN_ORIGIN

__all__ = ["KnownSamples", "SampleKeys", "keys_of"]

_LOG = logging.getLogger(__name__)
_MOST_BLOCKS = 512
_NONE = np.empty(0, dtype=np.int64)


class SampleKeys(NamedTuple):
    """What names samples within an origin and a stream: a sequence and, for single samples, the place in its row."""

    sequences: NDArray[np.int64]
    positions: NDArray[np.int64]

    @classmethod
    def of_scrapes(cls, sequences: NDArray[np.int64]) -> SampleKeys:
        """Those of whole scrapes."""
        return cls(sequences, np.zeros(len(sequences), dtype=np.int64))

    def missing_in(self, others: list[SampleKeys], whole_rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these are neither among the others, nor of a sequence in ``whole_rows``."""
        missing = ~np.isin(self.sequences, whole_rows)
        if not others:
            return missing
        sequences = np.concatenate([self.sequences, *(other.sequences for other in others)])
        positions = np.concatenate([self.positions, *(other.positions for other in others)])
        _, ranks = np.unique(sequences, return_inverse=True)
        names = ranks.astype(np.int64) * (int(positions.max(initial=0)) + 1) + positions
        own = len(self.sequences)
        return np.asarray(missing & ~np.isin(names[:own], names[own:]), dtype=np.bool_)


class KnownSamples:
    """Looks into the blocks (and for the store's own samples into the hot rows) that could hold the same samples.

    Sequences of blocks are remembered by number and checksum, since a number may be given again.
    """

    def __init__(self) -> None:
        self._keys: OrderedDict[tuple[int, int], SampleKeys] = OrderedDict()

    def fresh(self, connection: Connection, place: Place, kind: BlockKind, keys: SampleKeys) -> NDArray[np.bool_]:
        """Which of the samples are not in the store."""
        if not len(keys.sequences):
            return np.empty(0, dtype=np.bool_)
        first, last = int(keys.sequences.min()), int(keys.sequences.max())
        others = self._in_blocks(connection, place, kind, first, last)
        return keys.missing_in(others, self._in_hot_rows(connection, place, kind, first, last))

    def _in_blocks(
        self, connection: Connection, place: Place, kind: BlockKind, first: int, last: int
    ) -> list[SampleKeys]:
        table = schema.blocks
        origin_id, stream_id = place
        query = select(table.c.id, table.c.checksum).where(
            table.c.origin_id == origin_id,
            table.c.stream_id == stream_id,
            table.c.first_sequence <= last,
            table.c.last_sequence >= first,
            table.c.kind == kind,
        )
        return [self._keys_of(connection, kind, row.id, row.checksum) for row in connection.execute(query).all()]

    def _keys_of(self, connection: Connection, kind: BlockKind, block_id: int, checksum: int) -> SampleKeys:
        known = self._keys.get((block_id, checksum))
        if known is None:
            query = select(schema.blocks.c.payload).where(schema.blocks.c.id == block_id)
            try:
                known = keys_of(kind, connection.execute(query).scalar_one())
            except StoreDamagedError as error:
                # What cannot be read is not here: merging it in again mends the store.
                _LOG.warning("block %d is damaged: %s", block_id, error)
                known = SampleKeys(_NONE, _NONE)
            self._keys[block_id, checksum] = known
            if len(self._keys) > _MOST_BLOCKS:
                self._keys.popitem(last=False)
        return known

    def _in_hot_rows(
        self, connection: Connection, place: Place, kind: BlockKind, first: int, last: int
    ) -> NDArray[np.int64]:
        origin_id, stream_id = place
        if origin_id != OWN_ORIGIN:
            return _NONE
        table = schema.metrics
        is_loose = table.c.kind == LOOSE
        query = select(table.c.id).where(
            table.c.stream_id == stream_id,
            table.c.id.between(first, last),
            is_loose if kind is BlockKind.LOOSE else ~is_loose,
        )
        return np.array(connection.execute(query).scalars().all(), dtype=np.int64)


def keys_of(kind: BlockKind, payload: bytes) -> SampleKeys:
    """What names the samples of a block.

    Raises:
        StoreDamagedError: When it cannot be read.
    """
    if kind is BlockKind.SCRAPES:
        return SampleKeys.of_scrapes(block_reader(payload).sequences())
    loose = decode_loose_block(payload)
    return SampleKeys(loose.sequences, loose.positions)
