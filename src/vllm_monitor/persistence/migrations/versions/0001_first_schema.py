"""Samples, checkpoints and events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Written out rather than taken from schema.py: what a migration made must not change with later versions.
_ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the tables of the first version."""
    _create_names()
    _create_metrics()
    _create_checkpoints()
    _create_events()


def _create_names() -> None:
    op.create_table(
        "store_meta",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_store_meta"),
    )
    op.create_table(
        "targets",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_targets"),
        sa.UniqueConstraint("target", name="uq_targets_target"),
    )
    op.create_table(
        "streams",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("target_id", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_streams"),
        sa.ForeignKeyConstraint(["target_id"], ["targets.id"], name="fk_streams_target_id_targets"),
    )
    op.create_index("ix_streams_target_id_source", "streams", ["target_id", "source"], unique=True)
    op.create_table(
        "series",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("metric_type", sa.Text(), nullable=False),
        sa.Column("metric_name", sa.Text(), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_series"),
        sa.UniqueConstraint("fingerprint", name="uq_series_fingerprint"),
    )
    op.create_index("ix_series_metric_type", "series", ["metric_type"])
    op.create_index("ix_series_metric_name", "series", ["metric_name"])
    op.create_table(
        "layouts",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("series_ids", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_layouts"),
        sa.UniqueConstraint("fingerprint", name="uq_layouts_fingerprint"),
    )
    for table, column, parent in (
        ("stream_layouts", "layout_id", "layouts"),
        ("stream_series", "series_id", "series"),
    ):
        op.create_table(
            table,
            sa.Column("stream_id", sa.BigInteger(), nullable=False),
            sa.Column(column, sa.BigInteger(), nullable=False),
            sa.PrimaryKeyConstraint("stream_id", column, name=f"pk_{table}"),
            sa.ForeignKeyConstraint(["stream_id"], ["streams.id"], name=f"fk_{table}_stream_id_streams"),
            sa.ForeignKeyConstraint([column], [f"{parent}.id"], name=f"fk_{table}_{column}_{parent}"),
        )


def _create_metrics() -> None:
    op.create_table(
        "metrics",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("stream_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("start_ms", sa.BigInteger(), nullable=False),
        sa.Column("end_ms", sa.BigInteger(), nullable=False),
        sa.Column("layout_id", sa.BigInteger(), nullable=False),
        sa.Column("previous_id", sa.BigInteger(), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("checksum", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_metrics"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_metrics_stream_id_start_ms", "metrics", ["stream_id", "start_ms"])


def _create_checkpoints() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("checkpoint_id", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("timestamp", sa.Float(53), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("previous_state", sa.Text()),
        sa.Column("transition_type", sa.Text()),
        sa.Column("condition", sa.Text()),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("arguments", sa.Text(), nullable=False),
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("hardware_state", sa.Text(), nullable=False),
        sa.Column("error_context", sa.Text()),
        sa.Column("interventions_triggered", sa.Text(), nullable=False),
        sa.Column("guardrails_enforced", sa.Text(), nullable=False),
        sa.Column("metrics", sa.Text(), nullable=False),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("exact", sa.Text()),
        sa.Column("checksum", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_checkpoints"),
        sa.UniqueConstraint("checkpoint_id", name="uq_checkpoints_checkpoint_id"),
    )
    op.create_index("ix_checkpoints_timestamp", "checkpoints", ["timestamp"])
    op.create_index("ix_checkpoints_target_timestamp", "checkpoints", ["target", "timestamp"])
    op.create_index("ix_checkpoints_state_timestamp", "checkpoints", ["state", "timestamp"])


def _create_events() -> None:
    op.create_table(
        "events",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("timestamp", sa.Float(53), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("exact", sa.Text()),
        sa.Column("checksum", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
        sa.UniqueConstraint("event_id", name="uq_events_event_id"),
    )
    op.create_index("ix_events_timestamp", "events", ["timestamp"])
    op.create_index("ix_events_target_timestamp", "events", ["target", "timestamp"])
    op.create_index("ix_events_event_type_timestamp", "events", ["event_type", "timestamp"])
