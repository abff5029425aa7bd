"""A tick as one JSON object: the line of ``watch --json`` and of the timeline of ``replay --json``."""

from __future__ import annotations

import math
from typing import Any

from vllm_monitor.core.pipeline import Tick
from vllm_monitor.records import Alert, Event, FailurePrediction

__all__ = ["alert_as_json", "event_as_json", "prediction_as_json", "tick_as_json"]


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinities."""
    return value if math.isfinite(value) else None


def event_as_json(event: Event) -> dict[str, Any]:
    """An event as JSON values."""
    return {
        "ts": event.timestamp,
        "type": event.event_type,
        "severity": event.severity.value,
        "message": event.message,
    }


def alert_as_json(alert: Alert) -> dict[str, Any]:
    """An alert as JSON values."""
    return {
        "name": alert.name,
        "state": alert.state.value,
        "severity": alert.severity.value,
        "since": alert.timestamp,
        "fired_at": alert.fired_at,
        "message": alert.message,
        "intervention": alert.intervention,
        "runbook": alert.metadata.get("runbook"),
    }


def prediction_as_json(prediction: FailurePrediction) -> dict[str, Any]:
    """A prediction as JSON values."""
    return {
        "ts": prediction.timestamp,
        "failure_type": prediction.failure_type,
        "probability": prediction.probability,
        "calibrated": prediction.calibrated,
        "time_to_failure": prediction.time_to_failure,
        "time_to_failure_low": prediction.time_to_failure_low,
        "time_to_failure_high": prediction.time_to_failure_high,
        "horizon_seconds": prediction.horizon_seconds,
        "contributing_factors": prediction.contributing_factors,
        "recommended_mitigations": prediction.recommended_mitigations,
    }


def tick_as_json(tick: Tick) -> dict[str, Any]:
    """A tick as JSON values; the keys are documented in docs/cli.md."""
    snapshot = tick.snapshot
    host = snapshot.host
    return {
        "ts": round(snapshot.timestamp, 3),
        "target": snapshot.target,
        "state": snapshot.state.value,
        "condition": snapshot.condition.value,
        "reason": snapshot.reason,
        "condition_since": round(snapshot.condition_since, 3),
        "scraped_at": round(snapshot.scraped_at, 3) if snapshot.scraped_at is not None else None,
        "health_status": snapshot.health_status,
        "failure": snapshot.failure,
        "version": snapshot.version,
        "models": list(snapshot.models),
        "values": {name: _number(value) for name, value in sorted(snapshot.values.items())},
        "processes": [
            {
                "pid": process.pid,
                "role": process.role,
                "state": process.state,
                "cpu_seconds": process.cpu_seconds,
                "rss_bytes": process.rss_bytes,
                "fds": process.fds,
                "threads": process.threads,
            }
            for process in snapshot.processes
        ],
        "host": None
        if host is None
        else {
            "cpu_percent": host.cpu_percent,
            "load1": host.load1,
            "memory_available_bytes": host.memory_available_bytes,
            "cpu_pressure_percent": host.cpu_some_avg10,
            "memory_pressure_percent": host.memory_some_avg10,
        },
        "gpus": [
            {
                "index": gpu.index,
                "name": gpu.name,
                "memory_used_bytes": gpu.memory_used_bytes,
                "memory_total_bytes": gpu.memory_total_bytes,
                "utilisation_ratio": gpu.utilisation_ratio,
                "power_watts": gpu.power_watts,
                "temperature_celsius": gpu.temperature_celsius,
            }
            for gpu in snapshot.gpus
        ],
        "notes": list(snapshot.notes),
        "alerts": [alert_as_json(alert) for alert in tick.firing],
        "predictions": [prediction_as_json(prediction) for prediction in tick.expected],
        "abstains": tick.abstains,
        "suppressed_predictions": dict(tick.suppressed),
        "events": [event_as_json(event) for event in tick.events],
    }
