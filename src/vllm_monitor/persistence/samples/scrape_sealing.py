"""Hot rows of scrapes made into one block and its roll-up."""

from __future__ import annotations

from sqlalchemy import Connection, select, update

from vllm_monitor.persistence import schema
from vllm_monitor.persistence.maintenance.short_transactions import ShortTransactions
from vllm_monitor.persistence.samples.block_rows import BlockKind, BlockRow, Tier
from vllm_monitor.persistence.samples.blocks.codec import BlockMethod, encode_block
from vllm_monitor.persistence.samples.decoded_scrapes import fitting, matrix_of_scrapes
from vllm_monitor.persistence.samples.identities import layout_of_series
from vllm_monitor.persistence.samples.rollups import MINUTE_SECONDS, rollup_of_matrix, rollup_row
from vllm_monitor.persistence.samples.sample_rows import MetricsRow, RowDecoder
from vllm_monitor.persistence.samples.scrape_codec import (
    KEYFRAME,
    LOOSE,
    Bits,
    decode_scrape,
    encode_scrape,
    row_checksum,
)
from vllm_monitor.persistence.samples.sealing_rows import (
    SealedPart,
    matrix_of_block,
    not_the_same,
    read_rows,
    replace_rows,
    series_of,
)
from vllm_monitor.persistence.sql_store import OWN_ORIGIN

__all__ = ["seal_scrapes"]

_rows = schema.metrics


def seal_scrapes(hand: ShortTransactions, stream_id: int, ids: list[int], method: BlockMethod) -> SealedPart:
    """Seal rows of a stream of scrapes, as many as fit into one block.

    Raises:
        StoreDamagedError: When the block does not come back as its rows; they stay.
        StoreUnavailableError: When the store was closed, or the rows are gone meanwhile.
    """
    with hand.reading() as connection:
        decoder = RowDecoder(connection, hand.store.catalogue)
        decoded = list(decoder.scrapes(read_rows(connection, stream_id, ids)))
        layouts = {
            layout_id: hand.store.catalogue.layout(connection, layout_id)
            for layout_id in {scrape.layout_id for scrape in decoded}
        }
        good = [scrape.row_id for scrape in decoded]
        taken = decoded[: fitting(decoded, layouts)]
        if not taken:
            return SealedPart([], good, 0)
        matrix = matrix_of_scrapes(taken, layouts)
        series = series_of(connection, hand, matrix.series_ids)
    payload = encode_block(
        matrix.times_ms, matrix.sequences, matrix.bits, series, method=method, present=matrix.present
    )
    if not matrix_of_block(payload, matrix.series_ids).is_same_as(matrix):
        raise not_the_same(stream_id)
    rollup = rollup_of_matrix(matrix, series) if matrix.series_ids else None
    start_ms, end_ms = int(matrix.times_ms.min()), int(matrix.times_ms.max())
    sealed_ids = matrix.sequences.tolist()
    sealed_bits = {scrape.row_id: scrape.bits for scrape in taken}
    with hand.writing() as connection:
        layout_id = layout_of_series(connection, stream_id, matrix.series_ids)
        block = BlockRow(
            0, BlockKind.SCRAPES, Tier.SEALED, stream_id, OWN_ORIGIN, layout_id, start_ms, end_ms,
            sealed_ids[0], sealed_ids[-1], len(sealed_ids), matrix.samples, 0, payload,
        )  # fmt: skip
        rollups = []
        if rollup is not None:
            rollups.append(
                rollup_row(
                    rollup, series, step_seconds=MINUTE_SECONDS, stream_id=stream_id, origin_id=OWN_ORIGIN,
                    layout_id=layout_id, start_ms=start_ms, end_ms=end_ms, samples=matrix.samples,
                    method=method,
                )
            )  # fmt: skip
        replace_rows(connection, block, rollups, sealed_ids)
        _let_stand_alone(connection, stream_id, sealed_bits)
    return SealedPart(sealed_ids, good, matrix.samples)


def _let_stand_alone(connection: Connection, stream_id: int, sealed: dict[int, Bits]) -> None:
    """Rows that were stored as their difference from one that is sealed now are stored whole."""
    query = select(_rows).where(
        _rows.c.stream_id == stream_id, _rows.c.previous_id.between(min(sealed), max(sealed)), _rows.c.kind != LOOSE
    )
    for row in [MetricsRow._make(found) for found in connection.execute(query)]:
        before = sealed.get(row.previous_id)
        if before is None:
            continue
        expected = row_checksum(
            row.kind, row.stream_id, row.layout_id, row.previous_id, row.start_ms, row.end_ms, row.payload
        )
        if expected != row.checksum:
            continue  # damaged: it stays as it is
        payload = encode_scrape(decode_scrape(row.payload, len(before), before), None)
        checksum = row_checksum(KEYFRAME, row.stream_id, row.layout_id, 0, row.start_ms, row.end_ms, payload)
        connection.execute(
            update(_rows)
            .where(_rows.c.id == row.id)
            .values(kind=KEYFRAME, previous_id=0, payload=payload, checksum=checksum)
        )
