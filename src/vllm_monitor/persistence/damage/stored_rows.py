"""How a row of each table proves that it is what was stored; used by ``check`` and by salvage.

A row is its columns by name, as SQLite gives them. Tables whose rows carry no checksum (``targets``, ``streams``,
``origins``, ``store_meta``) prove themselves by their form alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from sqlalchemy import Float, LargeBinary, Text

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.codecs.column_types import wrong_column
from vllm_monitor.persistence.codecs.text_column import from_text_column
from vllm_monitor.persistence.documents.document_rows import entry_of_row
from vllm_monitor.persistence.models.model_store import verify_arrays
from vllm_monitor.persistence.models.model_store import verify_row as verify_model_row
from vllm_monitor.persistence.records.prediction_scores import score_checksum
from vllm_monitor.persistence.records.rare_kinds import ALL_KINDS
from vllm_monitor.persistence.records.rare_rows import RareKind
from vllm_monitor.persistence.samples.block_rows import BlockKind, BlockRow, RollupRow
from vllm_monitor.persistence.samples.blocks.codec import block_reader
from vllm_monitor.persistence.samples.blocks.loose_block import decode_loose_block
from vllm_monitor.persistence.samples.rollup_codec import RollupReader
from vllm_monitor.persistence.samples.sample_rows import MetricsRow, SeriesName, layout_fingerprint, stored_series
from vllm_monitor.persistence.samples.scrape_codec import row_checksum

__all__ = ["VERIFIED_TABLES", "StoredRow", "decode_payload", "may_be_row_of", "row_from_values", "verify_row"]

StoredRow = Mapping[str, Any]
_HINT = "The row is skipped; run vllm-monitor check."
_STORE_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_META_KEY = re.compile(r"[a-z_]{1,64}", re.ASCII)
_INTS = frozenset({1, 2, 3, 4, 5, 6, 8, 9})
_REAL = 7


def verify_row(table: str, row: StoredRow) -> None:
    """Check a row's types, and it against its checksum or fingerprint, but not what its payload decodes to.

    Raises:
        StoreDamagedError: When it is not what was stored.
    """
    wrong = wrong_column(table, row)
    if wrong is not None:
        raise _damaged(table, f"has {type(row[wrong]).__name__} for its {wrong}")
    try:
        for value in row.values():
            if type(value) is str:
                value.encode()  # what was not UTF-8 was read with stand-ins for its bytes
        VERIFIED_TABLES[table](row)
    except StoreDamagedError:
        raise
    except Exception as error:
        # Damaged columns reach codecs with values of any type; whatever those raise means the same.
        raise _damaged(table, f"cannot be read ({type(error).__name__})") from error


def decode_payload(table: str, row: StoredRow) -> int | None:
    """Decode the payload of a row of ``blocks`` or ``rollups``; the number of its columns where it has any.

    Raises:
        StoreDamagedError: When it does not have its documented form.
    """
    try:
        if table == "blocks" and row["kind"] == BlockKind.LOOSE:
            decode_loose_block(row["payload"])
            return None
        if table == "rollups":
            payload = row["payload"]
            rollup = RollupReader(lambda offset, length: payload[offset : offset + length], len(payload))
            rollup.read(range(len(rollup.forms)))
            return len(rollup.forms)
        reader = block_reader(row["payload"])
        reader.verify()
    except StoreDamagedError:
        raise
    except Exception as error:
        # The checksum holds, so this is a fault of ours; the row is as useless as a damaged one, and named.
        raise _damaged(table, f"cannot be decoded ({type(error).__name__}: {error})") from error
    return reader.column_count


def row_from_values(table: str, rowid: int, serials: Sequence[int], values: Sequence[Any]) -> StoredRow | None:
    """The row of a table that carved values are; ``None`` when they cannot be one.

    Args:
        table: Its name.
        rowid: Its number.
        serials: Storage type of each value, as in ``page_carver``.
        values: Its columns.
    """
    if not may_be_row_of(table, serials):
        return None
    row: dict[str, Any] = {}
    for column, value in zip(schema.metadata.tables[table].columns, values, strict=True):
        if isinstance(column.type, Float) and isinstance(value, int):
            value = float(value)  # noqa: PLW2901  # SQLite stores whole real numbers as whole numbers
        row[column.name] = rowid if column.name == "id" else value
    return row


def may_be_row_of(table: str, serials: Sequence[int]) -> bool:
    """Whether storage types are such as rows of a table have."""
    forms = _forms_of(table)
    return len(forms) == len(serials) and all(form(serial) for form, serial in zip(forms, serials, strict=True))


@lru_cache(maxsize=64)
def _forms_of(table: str) -> tuple[Callable[[int], bool], ...]:
    return tuple(
        partial(_fits, column.type, is_number=column.name == "id", is_optional=bool(column.nullable))
        for column in schema.metadata.tables[table].columns
    )


def _fits(kind: Any, serial: int, *, is_number: bool, is_optional: bool) -> bool:
    if is_number or serial == 0:
        return serial == 0 and (is_number or is_optional)  # SQLite leaves a primary key's column empty
    if isinstance(kind, Text):
        return serial >= 13 and serial % 2 == 1
    if isinstance(kind, LargeBinary):
        return serial >= 12 and serial % 2 == 0
    if isinstance(kind, Float):
        return serial == _REAL or serial in _INTS
    return serial in _INTS


def _damaged(table: str, what: str) -> StoreDamagedError:
    return StoreDamagedError(f"a row of {table} {what}", hint=_HINT)


def _verify_rare(kind: RareKind[Any], row: StoredRow) -> None:
    kind.from_row(row)


def _verify_series(row: StoredRow) -> None:
    name = SeriesName(row["metric_type"], row["metric_name"], row["tags"], row["kind"])
    if name.fingerprint != row["fingerprint"]:
        raise _damaged("series", "does not match its fingerprint")
    stored_series(name)


def _verify_layout(row: StoredRow) -> None:
    if layout_fingerprint(row["series_ids"]) != row["fingerprint"]:
        raise _damaged("layouts", "does not match its fingerprint")
    if not all(type(number) is int for number in json.loads(row["series_ids"])):
        raise _damaged("layouts", "names no series")


def _verify_metrics(stored: StoredRow) -> None:
    row = MetricsRow(**stored)
    expected = row_checksum(
        row.kind, row.stream_id, row.layout_id, row.previous_id, row.start_ms, row.end_ms, row.payload
    )
    if row.checksum != expected:
        raise _damaged("metrics", "does not match its checksum")


def _verify_block(row: StoredRow) -> None:
    BlockRow(**row).verify()


def _verify_rollup(row: StoredRow) -> None:
    RollupRow(**row).verify()


def _verify_score(row: StoredRow) -> None:
    if score_checksum(row) != row["checksum"]:
        raise _damaged("prediction_scores", "does not match its checksum")


def _verify_document(row: StoredRow) -> None:
    entry_of_row(row)


def _verify_model(row: StoredRow) -> None:
    verify_model_row(row)
    if row["file_name"] is None and row["size_bytes"]:
        verify_arrays(row, row["arrays"] or b"")


def _verify_target(row: StoredRow) -> None:
    from_text_column(row["target"])


def _verify_stream(row: StoredRow) -> None:
    from_text_column(row["source"])
    if row["target_id"] < 1:
        raise _damaged("streams", "names no target")


def _verify_origin(row: StoredRow) -> None:
    if not _STORE_ID.fullmatch(row["store_id"]):
        raise _damaged("origins", "names no store")


def _verify_meta(row: StoredRow) -> None:
    if not _META_KEY.fullmatch(row["key"]) or (row["key"] == "store_id" and not _STORE_ID.fullmatch(row["value"])):
        raise _damaged("store_meta", "is no fact about a store")


VERIFIED_TABLES: dict[str, Callable[[StoredRow], None]] = {
    "store_meta": _verify_meta,
    "origins": _verify_origin,  # before targets, which have the same form, but may have any name
    "targets": _verify_target,
    "streams": _verify_stream,
    "series": _verify_series,
    "layouts": _verify_layout,
    "metrics": _verify_metrics,
    "blocks": _verify_block,
    "rollups": _verify_rollup,
    **{kind.table: partial(_verify_rare, kind) for kind in ALL_KINDS},
    "prediction_scores": _verify_score,
    "documents": _verify_document,
    "models": _verify_model,
}
"""Table to what verifies a row of it, in the order in which salvage needs them."""
