"""Guardrails: conditions that must not be met, and the alerts that say when they are."""

from vllm_monitor.guardrails.builtin import builtin_policies
from vllm_monitor.guardrails.condition import CompiledCondition
from vllm_monitor.guardrails.context import METRICS, VARIABLES, Variable, make_context
from vllm_monitor.guardrails.guardrails import Guardrails, GuardrailStore, Registered
from vllm_monitor.guardrails.prometheus_rules import RuleSet, prometheus_rules
from vllm_monitor.guardrails.routing import AlertRouter, Destination, parse_destination
from vllm_monitor.records import Alert, AlertState, GuardrailPolicy

__all__ = [
    "METRICS",
    "VARIABLES",
    "Alert",
    "AlertRouter",
    "AlertState",
    "CompiledCondition",
    "Destination",
    "GuardrailPolicy",
    "GuardrailStore",
    "Guardrails",
    "Registered",
    "RuleSet",
    "Variable",
    "builtin_policies",
    "make_context",
    "parse_destination",
    "prometheus_rules",
]
