"""Pictures of a server, made up."""

from __future__ import annotations

from vllm_monitor.picture import Snapshot
from vllm_monitor.records import Condition, LifecycleState

FULL = {"kv_cache_usage_ratio": 0.99, "requests_waiting": 3.0}
CALM = {"kv_cache_usage_ratio": 0.4, "requests_waiting": 0.0}


def snapshot(
    now: float,
    values: dict[str, float] | None = None,
    condition: Condition = Condition.OK,
    state: LifecycleState = LifecycleState.PROCESSING_REQUESTS,
) -> Snapshot:
    return Snapshot(
        target="x",
        timestamp=now,
        state=state,
        condition=condition,
        reason="",
        condition_since=0.0,
        values=values or {},
    )
