"""The tables of records: checkpoints, predictions, attempts and all else that is not a sample."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Float, Index, Integer, LargeBinary, Table, Text

from vllm_monitor.persistence.schema_samples import RowId, metadata

__all__ = [
    "alerts",
    "checkpoints",
    "documents",
    "events",
    "failure_patterns",
    "happy_paths",
    "learning_data",
    "mitigation_attempts",
    "models",
    "prediction_scores",
    "predictions",
    "requests",
]


def _text(name: str, *, required: bool = True) -> Column[Any]:
    return Column(name, Text, nullable=not required)


def _real(name: str, *, required: bool = False) -> Column[Any]:
    return Column(name, Float(53), nullable=not required)


def _whole(name: str, *, required: bool = False) -> Column[Any]:
    return Column(name, BigInteger, nullable=not required)


def _record_table(name: str, id_field: str, *columns: Column[Any], filters: tuple[str, ...] = ()) -> Table:
    """A table of records: each has an id that is unique across stores, a target, a time and a checksum."""
    return Table(
        name,
        metadata,
        Column("id", RowId, primary_key=True),
        Column(id_field, Text, nullable=False, unique=True),
        _text("target"),
        Column("timestamp", Float(53), nullable=False, index=True),
        *columns,
        _text("metadata"),
        _text("exact", required=False),
        _text("checksum"),
        Index(None, "target", "timestamp"),
        *(Index(None, field, "timestamp") for field in filters),
    )


checkpoints = _record_table(
    "checkpoints",
    "checkpoint_id",
    _text("state"),
    _text("previous_state", required=False),
    _text("transition_type", required=False),
    _text("condition", required=False),
    _text("reason"),
    _text("arguments"),
    _text("environment"),
    _text("hardware_state"),
    _text("error_context", required=False),
    _text("interventions_triggered"),
    _text("guardrails_enforced"),
    _text("metrics"),
    filters=("state",),
)

events = _record_table(
    "events",
    "event_id",
    _text("event_type"),
    _text("severity"),
    _text("message"),
    _text("data"),
    filters=("event_type",),
)

predictions = _record_table(
    "predictions",
    "prediction_id",
    _text("current_state"),
    _text("predicted_failure_state", required=False),
    _text("failure_type"),
    _real("time_to_failure"),
    _real("probability"),
    _text("confidence"),
    _text("contributing_factors"),
    _text("recommended_mitigations"),
    _text("checkpoint_id", required=False),
    _real("horizon_seconds"),
    _real("time_to_failure_low"),
    _real("time_to_failure_high"),
    _whole("calibrated"),
    _text("model_version"),
    _text("outcome"),
    _real("resolved_at"),
    filters=("failure_type", "outcome"),
)

mitigation_attempts = _record_table(
    "mitigation_attempts",
    "attempt_id",
    _text("initial_state"),
    _text("initial_metrics"),
    _text("error_context"),
    _text("strategy_name"),
    _text("interventions_executed"),
    _real("execution_time"),
    _text("outcome", required=False),
    _text("final_state", required=False),
    _text("final_metrics", required=False),
    _text("side_effects_observed"),
    _text("failure_pattern_id", required=False),
    _text("prediction_id", required=False),
    _real("confidence_score"),
    _text("status"),
    _real("propensity"),
    _text("policy"),
    _real("reward"),
    _text("mode"),
    _text("approved_by"),
    filters=("strategy_name", "outcome", "status"),
)

alerts = _record_table(
    "alerts",
    "alert_id",
    _text("name"),
    _text("state"),
    _text("severity"),
    _text("message"),
    _text("condition"),
    _text("labels"),
    _text("values"),
    _real("fired_at"),
    _real("resolved_at"),
    _text("intervention", required=False),
    _text("checkpoint_id", required=False),
    filters=("name", "state"),
)

requests = _record_table(
    "requests",
    "request_id",
    _text("model"),
    _text("finish_reason"),
    _whole("prompt_tokens"),
    _whole("output_tokens"),
    _whole("cached_tokens"),
    _real("queue_seconds"),
    _real("time_to_first_token_seconds"),
    _real("inter_token_seconds"),
    _real("longest_gap_seconds"),
    _real("duration_seconds"),
    _whole("preemptions"),
    _text("error"),
    _whole("met_objective"),
    _whole("engine"),
)

happy_paths = _record_table(
    "happy_paths",
    "path_id",
    _text("name"),
    _text("start_state", required=False),
    _text("end_state", required=False),
    _text("checkpoints"),
    _text("metrics_profile"),
    _text("guardrails"),
    _whole("success_count", required=True),
    _whole("failure_count", required=True),
    _real("updated_at"),
    filters=("start_state", "end_state"),
)

learning_data = _record_table(
    "learning_data",
    "learning_id",
    _text("learning_type"),
    _text("state_context"),
    _text("action_taken"),
    _real("reward"),
    filters=("learning_type",),
)

failure_patterns = _record_table(
    "failure_patterns",
    "pattern_id",
    _text("failure_type"),
    _text("description"),
    _text("states"),
    _text("error_signatures"),
    _text("metric_conditions"),
    _whole("occurrence_count"),
    _whole("false_alarm_count"),
    _real("last_seen"),
    _real("mean_lead_seconds"),
    filters=("failure_type",),
)

prediction_scores = Table(
    "prediction_scores",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("origin_id", BigInteger, nullable=False),
    Column("day", Integer, nullable=False),
    _text("target"),
    _text("failure_type"),
    _text("outcome"),
    Column("calibration_bin", Integer, nullable=False),
    _whole("predictions", required=True),
    _real("probability_sum", required=True),
    _real("probability_square_sum", required=True),
    _text("checksum"),
    Index(None, "origin_id", "day", "target", "failure_type", "outcome", "calibration_bin", unique=True),
)

documents = Table(
    "documents",
    metadata,
    Column("id", RowId, primary_key=True),
    _text("kind"),
    _text("name"),
    _whole("revision", required=True),
    _real("modified_at", required=True),
    _whole("deleted", required=True),
    _text("content"),
    _text("checksum"),
    Index(None, "kind", "name", unique=True),
)

models = Table(
    "models",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("model_id", Text, nullable=False, unique=True),
    _text("model_name"),
    _whole("version", required=True),
    _real("timestamp", required=True),
    _text("structure"),
    _text("metadata"),
    _text("file_name", required=False),
    _whole("size_bytes", required=True),
    _text("sha256"),
    _text("checksum"),
    Column("arrays", LargeBinary),
    Index(None, "model_name", "version", unique=True),
)
