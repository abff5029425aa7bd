"""Predictions and failures, made up."""

from __future__ import annotations

from typing import Any

from vllm_monitor.failures import Episode
from vllm_monitor.records import FailurePrediction, LifecycleState, PredictionConfidence


def prediction(
    prediction_id: str = "p",
    at: float = 100.0,
    horizon_seconds: float = 100.0,
    failure_type: str = "kv_exhaustion",
    **others: Any,
) -> FailurePrediction:
    return FailurePrediction(
        prediction_id,
        at,
        LifecycleState.PROCESSING_REQUESTS,
        None,
        failure_type,
        horizon_seconds / 2,
        others.pop("probability", 0.8),
        PredictionConfidence.HIGH,
        ["the cache fills"],
        [],
        horizon_seconds=horizon_seconds,
        target="x",
        **others,
    )


def failure(at: float, failure_type: str = "kv_exhaustion", ended_at: float | None = None) -> Episode:
    return Episode("x", failure_type, at, at, ended_at)
