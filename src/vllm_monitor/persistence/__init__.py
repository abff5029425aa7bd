"""The store: everything that must survive whatever ends the process.

What needs a database is imported when it is first used, so that settings can be read without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vllm_monitor.persistence.config import PersistenceConfig, StorageBackend
from vllm_monitor.records import (
    Alert,
    AlertState,
    AttemptStatus,
    Condition,
    Event,
    FailurePattern,
    FailurePrediction,
    GuardrailPolicy,
    HappyPath,
    LifecycleState,
    MitigationAttempt,
    MitigationOutcome,
    PluginRecord,
    PredictionConfidence,
    PredictionOutcome,
    PredictionScore,
    RequestSummary,
    Severity,
    StateCheckpoint,
    StateTransition,
    StrategyRecord,
)

if TYPE_CHECKING:
    from vllm_monitor.persistence.archive.archive_reports import ExportReport, ImportReport
    from vllm_monitor.persistence.codecs.redaction import redact, redact_text
    from vllm_monitor.persistence.damage.check import CheckReport, Finding, check_store
    from vllm_monitor.persistence.manager import PersistenceManager
    from vllm_monitor.persistence.models.model_verbs import ModelInfo
    from vllm_monitor.persistence.results import MaintenanceReport, SeriesData, StoreHealth

__all__ = [
    "Alert",
    "AlertState",
    "AttemptStatus",
    "CheckReport",
    "Condition",
    "Event",
    "ExportReport",
    "FailurePattern",
    "FailurePrediction",
    "Finding",
    "GuardrailPolicy",
    "HappyPath",
    "ImportReport",
    "LifecycleState",
    "MaintenanceReport",
    "MitigationAttempt",
    "MitigationOutcome",
    "ModelInfo",
    "PersistenceConfig",
    "PersistenceManager",
    "PluginRecord",
    "PredictionConfidence",
    "PredictionOutcome",
    "PredictionScore",
    "RequestSummary",
    "SeriesData",
    "Severity",
    "StateCheckpoint",
    "StateTransition",
    "StorageBackend",
    "StoreHealth",
    "StrategyRecord",
    "check_store",
    "redact",
    "redact_text",
]

_LAZY = {
    "CheckReport": "damage.check",
    "ExportReport": "archive.archive_reports",
    "Finding": "damage.check",
    "ImportReport": "archive.archive_reports",
    "MaintenanceReport": "results",
    "ModelInfo": "models.model_verbs",
    "PersistenceManager": "manager",
    "SeriesData": "results",
    "StoreHealth": "results",
    "check_store": "damage.check",
    "redact": "codecs.redaction",
    "redact_text": "codecs.redaction",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
