"""A server as plugins see it."""

from __future__ import annotations

from collections.abc import Mapping

from vllm_monitor.core.pipeline import Tick
from vllm_monitor.records import TargetView

__all__ = ["view_of"]


def view_of(tick: Tick, labels: Mapping[str, str]) -> TargetView:
    """What plugins are told of a tick, as JSON values."""
    snapshot = tick.snapshot
    return TargetView(
        state=snapshot.state.value,
        condition=snapshot.condition.value,
        condition_seconds=max(0.0, snapshot.timestamp - snapshot.condition_since),
        reason=snapshot.reason,
        version=snapshot.version,
        models=list(snapshot.models),
        labels=dict(labels),
        values={name: float(value) for name, value in snapshot.values.items()},
        alerts=[
            {
                "name": alert.name,
                "severity": alert.severity.value,
                "since": alert.timestamp,
                "message": alert.message,
            }
            for alert in tick.firing
        ],
    )
