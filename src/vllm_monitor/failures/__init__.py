"""Failures: when each failure type has happened and when it is over, decided without a person."""

from vllm_monitor.failures.definitions import DEFINITIONS, Facts, FailureDefinition
from vllm_monitor.failures.failure_events import FAILURE_HAPPENED, FAILURE_OVER, episodes_of, event_of, stored_episodes
from vllm_monitor.failures.load_baseline import LoadBaseline
from vllm_monitor.failures.slowdown import Slowdown
from vllm_monitor.failures.watch import Episode, FailureWatch

__all__ = [
    "DEFINITIONS",
    "FAILURE_HAPPENED",
    "FAILURE_OVER",
    "Episode",
    "Facts",
    "FailureDefinition",
    "FailureWatch",
    "LoadBaseline",
    "Slowdown",
    "episodes_of",
    "event_of",
    "stored_episodes",
]
