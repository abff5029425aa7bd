"""Every record type, sealed blocks and roll-ups."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Written out rather than taken from schema.py: what a migration made must not change with later versions.
_ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the tables of the second version; those of the first stay as they are."""
    _create_alerts()
    _create_blocks()
    _create_documents()
    _create_failure_patterns()
    _create_happy_paths()
    _create_learning_data()
    _create_mitigation_attempts()
    _create_models()
    _create_origins()
    _create_prediction_scores()
    _create_predictions()
    _create_requests()
    _create_rollups()


def _create_alerts() -> None:
    op.create_table(
        "alerts",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("alert_id", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("timestamp", sa.Float(precision=53), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("condition", sa.Text(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("values", sa.Text(), nullable=False),
        sa.Column("fired_at", sa.Float(precision=53), nullable=True),
        sa.Column("resolved_at", sa.Float(precision=53), nullable=True),
        sa.Column("intervention", sa.Text(), nullable=True),
        sa.Column("checkpoint_id", sa.Text(), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("exact", sa.Text(), nullable=True),
        sa.Column("checksum", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_alerts"),
        sa.UniqueConstraint("alert_id", name="uq_alerts_alert_id"),
    )
    op.create_index("ix_alerts_name_timestamp", "alerts", ["name", "timestamp"])
    op.create_index("ix_alerts_state_timestamp", "alerts", ["state", "timestamp"])
    op.create_index("ix_alerts_target_timestamp", "alerts", ["target", "timestamp"])
    op.create_index("ix_alerts_timestamp", "alerts", ["timestamp"])


def _create_blocks() -> None:
    op.create_table(
        "blocks",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("tier", sa.SmallInteger(), nullable=False),
        sa.Column("stream_id", sa.BigInteger(), nullable=False),
        sa.Column("origin_id", sa.BigInteger(), nullable=False),
        sa.Column("layout_id", sa.BigInteger(), nullable=False),
        sa.Column("start_ms", sa.BigInteger(), nullable=False),
        sa.Column("end_ms", sa.BigInteger(), nullable=False),
        sa.Column("first_sequence", sa.BigInteger(), nullable=False),
        sa.Column("last_sequence", sa.BigInteger(), nullable=False),
        sa.Column("scrapes", sa.Integer(), nullable=False),
        sa.Column("samples", sa.BigInteger(), nullable=False),
        sa.Column("checksum", sa.BigInteger(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_blocks"),
    )
    op.create_index(
        "ix_blocks_origin_id_stream_id_first_sequence", "blocks", ["origin_id", "stream_id", "first_sequence"]
    )
    op.create_index("ix_blocks_stream_id_start_ms_end_ms", "blocks", ["stream_id", "start_ms", "end_ms"])


def _create_documents() -> None:
    op.create_table(
        "documents",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("modified_at", sa.Float(precision=53), nullable=False),
        sa.Column("deleted", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("checksum", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_documents"),
    )
    op.create_index("ix_documents_kind_name", "documents", ["kind", "name"], unique=True)


def _create_failure_patterns() -> None:
    op.create_table(
        "failure_patterns",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("pattern_id", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("timestamp", sa.Float(precision=53), nullable=False),
        sa.Column("failure_type", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("states", sa.Text(), nullable=False),
        sa.Column("error_signatures", sa.Text(), nullable=False),
        sa.Column("metric_conditions", sa.Text(), nullable=False),
        sa.Column("occurrence_count", sa.BigInteger(), nullable=True),
        sa.Column("false_alarm_count", sa.BigInteger(), nullable=True),
        sa.Column("last_seen", sa.Float(precision=53), nullable=True),
        sa.Column("mean_lead_seconds", sa.Float(precision=53), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("exact", sa.Text(), nullable=True),
        sa.Column("checksum", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_failure_patterns"),
        sa.UniqueConstraint("pattern_id", name="uq_failure_patterns_pattern_id"),
    )
    op.create_index("ix_failure_patterns_failure_type_timestamp", "failure_patterns", ["failure_type", "timestamp"])
    op.create_index("ix_failure_patterns_target_timestamp", "failure_patterns", ["target", "timestamp"])
    op.create_index("ix_failure_patterns_timestamp", "failure_patterns", ["timestamp"])


def _create_happy_paths() -> None:
    op.create_table(
        "happy_paths",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("path_id", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("timestamp", sa.Float(precision=53), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("start_state", sa.Text(), nullable=True),
        sa.Column("end_state", sa.Text(), nullable=True),
        sa.Column("checkpoints", sa.Text(), nullable=False),
        sa.Column("metrics_profile", sa.Text(), nullable=False),
        sa.Column("guardrails", sa.Text(), nullable=False),
        sa.Column("success_count", sa.BigInteger(), nullable=False),
        sa.Column("failure_count", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.Float(precision=53), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("exact", sa.Text(), nullable=True),
        sa.Column("checksum", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_happy_paths"),
        sa.UniqueConstraint("path_id", name="uq_happy_paths_path_id"),
    )
    op.create_index("ix_happy_paths_end_state_timestamp", "happy_paths", ["end_state", "timestamp"])
    op.create_index("ix_happy_paths_start_state_timestamp", "happy_paths", ["start_state", "timestamp"])
    op.create_index("ix_happy_paths_target_timestamp", "happy_paths", ["target", "timestamp"])
    op.create_index("ix_happy_paths_timestamp", "happy_paths", ["timestamp"])


def _create_learning_data() -> None:
    op.create_table(
        "learning_data",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("learning_id", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("timestamp", sa.Float(precision=53), nullable=False),
        sa.Column("learning_type", sa.Text(), nullable=False),
        sa.Column("state_context", sa.Text(), nullable=False),
        sa.Column("action_taken", sa.Text(), nullable=False),
        sa.Column("reward", sa.Float(precision=53), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("exact", sa.Text(), nullable=True),
        sa.Column("checksum", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_learning_data"),
        sa.UniqueConstraint("learning_id", name="uq_learning_data_learning_id"),
    )
    op.create_index("ix_learning_data_learning_type_timestamp", "learning_data", ["learning_type", "timestamp"])
    op.create_index("ix_learning_data_target_timestamp", "learning_data", ["target", "timestamp"])
    op.create_index("ix_learning_data_timestamp", "learning_data", ["timestamp"])


def _create_mitigation_attempts() -> None:
    op.create_table(
        "mitigation_attempts",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("attempt_id", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("timestamp", sa.Float(precision=53), nullable=False),
        sa.Column("initial_state", sa.Text(), nullable=False),
        sa.Column("initial_metrics", sa.Text(), nullable=False),
        sa.Column("error_context", sa.Text(), nullable=False),
        sa.Column("strategy_name", sa.Text(), nullable=False),
        sa.Column("interventions_executed", sa.Text(), nullable=False),
        sa.Column("execution_time", sa.Float(precision=53), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("final_state", sa.Text(), nullable=True),
        sa.Column("final_metrics", sa.Text(), nullable=True),
        sa.Column("side_effects_observed", sa.Text(), nullable=False),
        sa.Column("failure_pattern_id", sa.Text(), nullable=True),
        sa.Column("prediction_id", sa.Text(), nullable=True),
        sa.Column("confidence_score", sa.Float(precision=53), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("propensity", sa.Float(precision=53), nullable=True),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("reward", sa.Float(precision=53), nullable=True),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("approved_by", sa.Text(), nullable=False),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("exact", sa.Text(), nullable=True),
        sa.Column("checksum", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_mitigation_attempts"),
        sa.UniqueConstraint("attempt_id", name="uq_mitigation_attempts_attempt_id"),
    )
    op.create_index("ix_mitigation_attempts_outcome_timestamp", "mitigation_attempts", ["outcome", "timestamp"])
    op.create_index("ix_mitigation_attempts_status_timestamp", "mitigation_attempts", ["status", "timestamp"])
    op.create_index(
        "ix_mitigation_attempts_strategy_name_timestamp", "mitigation_attempts", ["strategy_name", "timestamp"]
    )
    op.create_index("ix_mitigation_attempts_target_timestamp", "mitigation_attempts", ["target", "timestamp"])
    op.create_index("ix_mitigation_attempts_timestamp", "mitigation_attempts", ["timestamp"])


def _create_models() -> None:
    op.create_table(
        "models",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("model_name", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("timestamp", sa.Float(precision=53), nullable=False),
        sa.Column("structure", sa.Text(), nullable=False),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("file_name", sa.Text(), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("checksum", sa.Text(), nullable=False),
        sa.Column("arrays", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
        sa.UniqueConstraint("model_id", name="uq_models_model_id"),
    )
    op.create_index("ix_models_model_name_version", "models", ["model_name", "version"], unique=True)


def _create_origins() -> None:
    op.create_table(
        "origins",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("store_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_origins"),
        sa.UniqueConstraint("store_id", name="uq_origins_store_id"),
    )


def _create_prediction_scores() -> None:
    op.create_table(
        "prediction_scores",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("origin_id", sa.BigInteger(), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("failure_type", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("calibration_bin", sa.Integer(), nullable=False),
        sa.Column("predictions", sa.BigInteger(), nullable=False),
        sa.Column("probability_sum", sa.Float(precision=53), nullable=False),
        sa.Column("probability_square_sum", sa.Float(precision=53), nullable=False),
        sa.Column("checksum", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_prediction_scores"),
    )
    op.create_index(
        "ix_prediction_scores_origin_id_day_target_failure_type_outcome_calibration_bin",
        "prediction_scores",
        ["origin_id", "day", "target", "failure_type", "outcome", "calibration_bin"],
        unique=True,
    )


def _create_predictions() -> None:
    op.create_table(
        "predictions",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("prediction_id", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("timestamp", sa.Float(precision=53), nullable=False),
        sa.Column("current_state", sa.Text(), nullable=False),
        sa.Column("predicted_failure_state", sa.Text(), nullable=True),
        sa.Column("failure_type", sa.Text(), nullable=False),
        sa.Column("time_to_failure", sa.Float(precision=53), nullable=True),
        sa.Column("probability", sa.Float(precision=53), nullable=True),
        sa.Column("confidence", sa.Text(), nullable=False),
        sa.Column("contributing_factors", sa.Text(), nullable=False),
        sa.Column("recommended_mitigations", sa.Text(), nullable=False),
        sa.Column("checkpoint_id", sa.Text(), nullable=True),
        sa.Column("horizon_seconds", sa.Float(precision=53), nullable=True),
        sa.Column("time_to_failure_low", sa.Float(precision=53), nullable=True),
        sa.Column("time_to_failure_high", sa.Float(precision=53), nullable=True),
        sa.Column("calibrated", sa.BigInteger(), nullable=True),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("resolved_at", sa.Float(precision=53), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("exact", sa.Text(), nullable=True),
        sa.Column("checksum", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_predictions"),
        sa.UniqueConstraint("prediction_id", name="uq_predictions_prediction_id"),
    )
    op.create_index("ix_predictions_failure_type_timestamp", "predictions", ["failure_type", "timestamp"])
    op.create_index("ix_predictions_outcome_timestamp", "predictions", ["outcome", "timestamp"])
    op.create_index("ix_predictions_target_timestamp", "predictions", ["target", "timestamp"])
    op.create_index("ix_predictions_timestamp", "predictions", ["timestamp"])


def _create_requests() -> None:
    op.create_table(
        "requests",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("timestamp", sa.Float(precision=53), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("finish_reason", sa.Text(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=True),
        sa.Column("output_tokens", sa.BigInteger(), nullable=True),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=True),
        sa.Column("queue_seconds", sa.Float(precision=53), nullable=True),
        sa.Column("time_to_first_token_seconds", sa.Float(precision=53), nullable=True),
        sa.Column("inter_token_seconds", sa.Float(precision=53), nullable=True),
        sa.Column("longest_gap_seconds", sa.Float(precision=53), nullable=True),
        sa.Column("duration_seconds", sa.Float(precision=53), nullable=True),
        sa.Column("preemptions", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("met_objective", sa.BigInteger(), nullable=True),
        sa.Column("engine", sa.BigInteger(), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("exact", sa.Text(), nullable=True),
        sa.Column("checksum", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_requests"),
        sa.UniqueConstraint("request_id", name="uq_requests_request_id"),
    )
    op.create_index("ix_requests_target_timestamp", "requests", ["target", "timestamp"])
    op.create_index("ix_requests_timestamp", "requests", ["timestamp"])


def _create_rollups() -> None:
    op.create_table(
        "rollups",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("step_seconds", sa.Integer(), nullable=False),
        sa.Column("tier", sa.SmallInteger(), nullable=False),
        sa.Column("stream_id", sa.BigInteger(), nullable=False),
        sa.Column("origin_id", sa.BigInteger(), nullable=False),
        sa.Column("layout_id", sa.BigInteger(), nullable=False),
        sa.Column("start_ms", sa.BigInteger(), nullable=False),
        sa.Column("end_ms", sa.BigInteger(), nullable=False),
        sa.Column("buckets", sa.Integer(), nullable=False),
        sa.Column("samples", sa.BigInteger(), nullable=False),
        sa.Column("checksum", sa.BigInteger(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_rollups"),
    )
    op.create_index(
        "ix_rollups_stream_id_step_seconds_start_ms_end_ms",
        "rollups",
        ["stream_id", "step_seconds", "start_ms", "end_ms"],
    )
    # ### end Alembic commands ###
