"""Hot rows of single samples made into one block and its roll-ups."""

from __future__ import annotations

import numpy as np

from vllm_monitor.persistence.maintenance.short_transactions import ShortTransactions
from vllm_monitor.persistence.samples.block_rows import BlockKind, BlockRow, Tier
from vllm_monitor.persistence.samples.blocks.codec import BlockMethod
from vllm_monitor.persistence.samples.blocks.loose_block import LooseBlock, decode_loose_block
from vllm_monitor.persistence.samples.identities import layout_of_series
from vllm_monitor.persistence.samples.loose_rollups import rollups_of_loose
from vllm_monitor.persistence.samples.rollups import MINUTE_SECONDS, rollup_row
from vllm_monitor.persistence.samples.sample_rows import RowDecoder
from vllm_monitor.persistence.samples.sealing_rows import (
    SealedPart,
    encode_loose,
    not_the_same,
    read_rows,
    replace_rows,
)
from vllm_monitor.persistence.sql_store import OWN_ORIGIN

__all__ = ["seal_loose"]

_MOST_LOOSE_SAMPLES = 100_000


def seal_loose(hand: ShortTransactions, stream_id: int, ids: list[int], method: BlockMethod) -> SealedPart:
    """Seal rows of a stream of single samples, as many as fit into one block.

    Raises:
        StoreDamagedError: When the block does not come back as its rows; they stay.
        StoreUnavailableError: When the store was closed, or the rows are gone meanwhile.
    """
    with hand.reading() as connection:
        decoder = RowDecoder(connection, hand.store.catalogue)
        decoded = list(decoder.loose(read_rows(connection, stream_id, ids)))
        good = [row_id for row_id, _ in decoded]
        sizes = np.cumsum([len(loose.values) for _, loose in decoded])
        fitting = max(1, int(np.searchsorted(sizes, _MOST_LOOSE_SAMPLES, side="right")))
        taken = decoded[:fitting]
        if not taken:
            return SealedPart([], good, 0)
        starts = np.concatenate(([0], sizes[: len(taken) - 1])).tolist()
        loose = LooseBlock(
            np.concatenate([np.full(len(one.values), row_id, dtype=np.int64) for row_id, one in taken]),
            np.concatenate([np.arange(len(one.values), dtype=np.int64) for _, one in taken]),
            np.concatenate([one.times_ms for _, one in taken]),
            np.concatenate([one.series_ids.astype(np.int64) for _, one in taken]),
            np.concatenate([one.values for _, one in taken]),
            np.concatenate([one.codes for _, one in taken]),
            {start + at: text for start, (_, one) in zip(starts, taken, strict=True)
             for at, text in one.metadata.items()},
        )  # fmt: skip
        series = hand.store.catalogue.series(connection, np.unique(loose.series_ids).tolist())
    payload = encode_loose(loose, method)
    if not _is_same_loose(decode_loose_block(payload), loose):
        raise not_the_same(stream_id)
    rolled_up = list(rollups_of_loose(loose, {number: stored.series for number, stored in series.items()}))
    sealed_ids = [row_id for row_id, _ in taken]
    with hand.writing() as connection:
        block = BlockRow(
            0, BlockKind.LOOSE, Tier.SEALED, stream_id, OWN_ORIGIN, 0,
            int(loose.times_ms.min(initial=1 << 62)), int(loose.times_ms.max(initial=-(1 << 62))),
            sealed_ids[0], sealed_ids[-1], len(sealed_ids), len(loose.values), 0, payload,
        )  # fmt: skip
        rollups = [
            rollup_row(
                part.rollup, part.series, step_seconds=MINUTE_SECONDS, stream_id=stream_id, origin_id=OWN_ORIGIN,
                layout_id=layout_of_series(connection, stream_id, part.series_ids, is_loose=True),
                start_ms=part.start_ms, end_ms=part.end_ms, samples=part.samples, method=method,
            )
            for part in rolled_up
        ]  # fmt: skip
        replace_rows(connection, block, rollups, sealed_ids)
    return SealedPart(sealed_ids, good, len(loose.values))


def _is_same_loose(one: LooseBlock, other: LooseBlock) -> bool:
    return one.metadata == other.metadata and all(
        np.array_equal(mine.view(np.int64) if mine.dtype == np.float64 else mine, others)
        for mine, others in (
            (one.sequences, other.sequences),
            (one.positions, other.positions),
            (one.times_ms, other.times_ms),
            (one.series_ids, other.series_ids),
            (one.values, np.ascontiguousarray(other.values).view(np.int64)),
            (one.codes, other.codes),
        )
    )
