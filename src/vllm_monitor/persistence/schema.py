"""The tables of the store, the same for every SQL database.

==================  ========================================================================================
table               one row is
==================  ========================================================================================
``store_meta``      a fact about the store: ``store_id``, ``created_at``
``targets``         a server (or the monitor itself: the empty target)
``streams``         a source of scrapes of a target; the source ``""`` is that of samples saved one by one
``series``          a metric name with its type and labels, shared by all targets
``layouts``         an ordered set of series: the columns of a scrape
``stream_layouts``  that a stream has scrapes with a layout
``stream_series``   that a stream has single samples of a series
``metrics``         one scrape, or some single samples, in the encoding of ``scrape_codec`` / ``loose_codec``
``checkpoints``     one state checkpoint, readable as it stands (JSON text of ``value_codec``)
``events``          one event, likewise
==================  ========================================================================================

Text columns that came from outside hold what ``rare_rows`` makes of them: the text itself, or ``json:`` and its
JSON where a database could not hold it. ``exact`` is empty except where a column's type cannot say precisely
what was saved. ``checksum`` of checkpoints and events covers all columns but ``id``.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
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
    "HEAD_REVISION",
    "checkpoints",
    "events",
    "layouts",
    "metadata",
    "metrics",
    "series",
    "store_meta",
    "stream_layouts",
    "stream_series",
    "streams",
    "targets",
]

HEAD_REVISION = "0001"
"""The newest migration; a test keeps it equal to what Alembic says."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows itself only in a column that is declared INTEGER.
_RowId = BigInteger().with_variant(Integer, "sqlite")

store_meta = Table(
    "store_meta",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

targets = Table(
    "targets",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("target", Text, nullable=False, unique=True),
)

streams = Table(
    "streams",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("target_id", BigInteger, ForeignKey("targets.id"), nullable=False),
    Column("source", Text, nullable=False),
    Index(None, "target_id", "source", unique=True),
)

series = Table(
    "series",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("fingerprint", Text, nullable=False, unique=True),
    Column("metric_type", Text, nullable=False, index=True),
    Column("metric_name", Text, nullable=False, index=True),
    Column("tags", Text, nullable=False),
    Column("kind", Text, nullable=False),
)

layouts = Table(
    "layouts",
    metadata,
    Column("id", _RowId, primary_key=True),
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
    Column("id", _RowId, primary_key=True),
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

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("checkpoint_id", Text, nullable=False, unique=True),
    Column("target", Text, nullable=False),
    Column("timestamp", Float(53), nullable=False, index=True),
    Column("state", Text, nullable=False),
    Column("previous_state", Text),
    Column("transition_type", Text),
    Column("condition", Text),
    Column("reason", Text, nullable=False),
    Column("arguments", Text, nullable=False),
    Column("environment", Text, nullable=False),
    Column("hardware_state", Text, nullable=False),
    Column("error_context", Text),
    Column("interventions_triggered", Text, nullable=False),
    Column("guardrails_enforced", Text, nullable=False),
    Column("metrics", Text, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("exact", Text),
    Column("checksum", Text, nullable=False),
    Index(None, "target", "timestamp"),
    Index(None, "state", "timestamp"),
)

events = Table(
    "events",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("event_id", Text, nullable=False, unique=True),
    Column("target", Text, nullable=False),
    Column("timestamp", Float(53), nullable=False, index=True),
    Column("event_type", Text, nullable=False),
    Column("severity", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("data", Text, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("exact", Text),
    Column("checksum", Text, nullable=False),
    Index(None, "target", "timestamp"),
    Index(None, "event_type", "timestamp"),
)
