"""What one server looks like now, as screens, rules and the store read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vllm_monitor.records import Condition, GpuInfo, HostPressure, LifecycleState, ProcessInfo

__all__ = ["Snapshot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The picture of one target at one tick.

    Args:
        target: The server's URL.
        timestamp: Unix seconds of the tick.
        state: Lifecycle state.
        condition: What is the matter.
        reason: The judgement in one sentence, with its evidence.
        condition_since: Unix seconds at which the condition began.
        values: Canonical name to value; a name that is not known now is absent. The names are documented in
            ``records.vocabulary``.
        processes: Living processes of a local server.
        host: Pressure on the server's host, where it is ours.
        gpus: GPUs of the server's host, where there are any.
        version: Version of vLLM, once known.
        models: Names of the served models.
        scraped_at: Unix seconds at which the newest good page was asked for; ``None`` before the first.
        health_status: Last HTTP status of ``/health``; ``None`` when it did not answer.
        failure: Why the newest probe of the metrics page failed, empty when it did not.
        notes: Things worth knowing that are no fault (unknown metric families, pressure without effect).
    """

    target: str
    timestamp: float
    state: LifecycleState
    condition: Condition
    reason: str
    condition_since: float
    values: Mapping[str, float] = field(default_factory=dict)
    processes: tuple[ProcessInfo, ...] = ()
    host: HostPressure | None = None
    gpus: tuple[GpuInfo, ...] = ()
    version: str | None = None
    models: tuple[str, ...] = ()
    scraped_at: float | None = None
    health_status: int | None = None
    failure: str = ""
    notes: tuple[str, ...] = ()
