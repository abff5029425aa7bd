"""Failures: when each failure type has happened and when it is over, decided without a person."""

from vllm_monitor.failures.definitions import DEFINITIONS, Facts, FailureDefinition
from vllm_monitor.failures.load_baseline import LoadBaseline
from vllm_monitor.failures.watch import Episode, FailureWatch

__all__ = ["DEFINITIONS", "Episode", "Facts", "FailureDefinition", "FailureWatch", "LoadBaseline"]
