"""The vocabulary of the package: frozen records and their enums, standard library only."""

from vllm_monitor.records.event import Event, Severity
from vllm_monitor.records.lifecycle import Condition, LifecycleState, StateCheckpoint, StateTransition
from vllm_monitor.records.observation import (
    CanaryObservation,
    GpuInfo,
    GpuObservation,
    HealthObservation,
    HostPressure,
    LoadObservation,
    LogObservation,
    Observation,
    PageObservation,
    PauseObservation,
    ProbeFailure,
    ProcessInfo,
    ProcessObservation,
    VersionObservation,
)
from vllm_monitor.records.series import Layout, MetricKind, MetricType, Series, metric_type_of

__all__ = [
    "CanaryObservation",
    "Condition",
    "Event",
    "GpuInfo",
    "GpuObservation",
    "HealthObservation",
    "HostPressure",
    "Layout",
    "LifecycleState",
    "LoadObservation",
    "LogObservation",
    "MetricKind",
    "MetricType",
    "Observation",
    "PageObservation",
    "PauseObservation",
    "ProbeFailure",
    "ProcessInfo",
    "ProcessObservation",
    "Series",
    "Severity",
    "StateCheckpoint",
    "StateTransition",
    "VersionObservation",
    "metric_type_of",
]
