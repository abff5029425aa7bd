"""The vocabulary of the package: frozen records and their enums, standard library only."""

from vllm_monitor.records.alert import Alert, AlertState
from vllm_monitor.records.documents import GuardrailPolicy, PluginRecord, StrategyRecord
from vllm_monitor.records.event import Event, Severity
from vllm_monitor.records.happy_path import HappyPath
from vllm_monitor.records.lifecycle import Condition, LifecycleState, StateCheckpoint, StateTransition
from vllm_monitor.records.mitigation import AttemptStatus, MitigationAttempt, MitigationOutcome
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
from vllm_monitor.records.prediction import (
    FAILURE_TYPES,
    FailurePattern,
    FailurePrediction,
    PredictionConfidence,
    PredictionOutcome,
    PredictionScore,
)
from vllm_monitor.records.request import RequestSummary
from vllm_monitor.records.series import Layout, MetricKind, MetricType, Series, metric_type_of

__all__ = [
    "FAILURE_TYPES",
    "Alert",
    "AlertState",
    "AttemptStatus",
    "CanaryObservation",
    "Condition",
    "Event",
    "FailurePattern",
    "FailurePrediction",
    "GpuInfo",
    "GpuObservation",
    "GuardrailPolicy",
    "HappyPath",
    "HealthObservation",
    "HostPressure",
    "Layout",
    "LifecycleState",
    "LoadObservation",
    "LogObservation",
    "MetricKind",
    "MetricType",
    "MitigationAttempt",
    "MitigationOutcome",
    "Observation",
    "PageObservation",
    "PauseObservation",
    "PluginRecord",
    "PredictionConfidence",
    "PredictionOutcome",
    "PredictionScore",
    "ProbeFailure",
    "ProcessInfo",
    "ProcessObservation",
    "RequestSummary",
    "Series",
    "Severity",
    "StateCheckpoint",
    "StateTransition",
    "StrategyRecord",
    "VersionObservation",
    "metric_type_of",
]
