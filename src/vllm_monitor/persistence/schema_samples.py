"""The tables of samples, and of what names them."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
)

__all__ = [
    "RowId",
    "blocks",
    "layouts",
    "metadata",
    "metrics",
    "origins",
    "rollups",
    "series",
    "store_meta",
    "stream_layouts",
    "stream_series",
    "streams",
    "targets",
]

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows itself only in a column that is declared INTEGER.
RowId = BigInteger().with_variant(Integer, "sqlite")

store_meta = Table(
    "store_meta",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

targets = Table(
    "targets",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("target", Text, nullable=False, unique=True),
)

streams = Table(
    "streams",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("target_id", BigInteger, ForeignKey("targets.id"), nullable=False),
    Column("source", Text, nullable=False),
    Index(None, "target_id", "source", unique=True),
)

series = Table(
    "series",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("fingerprint", Text, nullable=False, unique=True),
    Column("metric_type", Text, nullable=False, index=True),
    Column("metric_name", Text, nullable=False, index=True),
    Column("tags", Text, nullable=False),
    Column("kind", Text, nullable=False),
)

layouts = Table(
    "layouts",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("fingerprint", Text, nullable=False, unique=True),
    Column("series_ids", Text, nullable=False),
)

stream_layouts = Table(
    "stream_layouts",
    metadata,
    Column("stream_id", BigInteger, ForeignKey("streams.id"), primary_key=True),
    Column("layout_id", BigInteger, ForeignKey("layouts.id"), primary_key=True),
)

stream_series = Table(
    "stream_series",
    metadata,
    Column("stream_id", BigInteger, ForeignKey("streams.id"), primary_key=True),
    Column("series_id", BigInteger, ForeignKey("series.id"), primary_key=True),
)

# No foreign keys here: they would be looked up for every scrape.
metrics = Table(
    "metrics",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("stream_id", BigInteger, nullable=False),
    Column("kind", SmallInteger, nullable=False),
    Column("start_ms", BigInteger, nullable=False),
    Column("end_ms", BigInteger, nullable=False),
    Column("layout_id", BigInteger, nullable=False),
    Column("previous_id", BigInteger, nullable=False),
    Column("samples", Integer, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("checksum", BigInteger, nullable=False),
    Index(None, "stream_id", "start_ms"),
    # Ids are the order of arrival and never used twice, also after the newest rows were deleted.
    sqlite_autoincrement=True,
)

origins = Table(
    "origins",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("store_id", Text, nullable=False, unique=True),
)

# No foreign keys below either: rows are checked by their checksums, and copied between stores.
blocks = Table(
    "blocks",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("kind", SmallInteger, nullable=False),
    Column("tier", SmallInteger, nullable=False),
    Column("stream_id", BigInteger, nullable=False),
    Column("origin_id", BigInteger, nullable=False),
    Column("layout_id", BigInteger, nullable=False),
    Column("start_ms", BigInteger, nullable=False),
    Column("end_ms", BigInteger, nullable=False),
    Column("first_sequence", BigInteger, nullable=False),
    Column("last_sequence", BigInteger, nullable=False),
    Column("scrapes", Integer, nullable=False),
    Column("samples", BigInteger, nullable=False),
    Column("checksum", BigInteger, nullable=False),
    # Last, so that the other columns are read without the pages of a large payload.
    Column("payload", LargeBinary, nullable=False),
    Index(None, "stream_id", "start_ms", "end_ms"),
    Index(None, "origin_id", "stream_id", "first_sequence"),
)

rollups = Table(
    "rollups",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("step_seconds", Integer, nullable=False),
    Column("tier", SmallInteger, nullable=False),
    Column("stream_id", BigInteger, nullable=False),
    Column("origin_id", BigInteger, nullable=False),
    Column("layout_id", BigInteger, nullable=False),
    Column("start_ms", BigInteger, nullable=False),
    Column("end_ms", BigInteger, nullable=False),
    Column("buckets", Integer, nullable=False),
    Column("samples", BigInteger, nullable=False),
    Column("checksum", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index(None, "stream_id", "step_seconds", "start_ms", "end_ms"),
)
