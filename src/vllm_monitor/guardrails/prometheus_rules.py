"""Guardrails as alerting rules of Prometheus, for those who page from there already.

A rule sees one page every 15 s or so, so it is slower than a watch, and it cannot see processes, health, log or
lifecycle. What that leaves is exported; what is not is named with its reason, so that nobody takes silence for health.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vllm_monitor.errors import InvalidConditionError
from vllm_monitor.guardrails.alert_track import times_of
from vllm_monitor.guardrails.condition import CompiledCondition
from vllm_monitor.guardrails.promql import NotExpressibleError, promql_of
from vllm_monitor.records import GuardrailPolicy

__all__ = ["RuleSet", "prometheus_rules"]

_IN_FLIGHT = (
    "(sum by (job, instance) (vllm:num_requests_running) + sum by (job, instance) (vllm:num_requests_waiting)) > 0"
)
_NO_PROGRESS = (
    "sum by (job, instance) (rate(vllm:generation_tokens_total[1m]))"
    " + sum by (job, instance) (rate(vllm:iteration_tokens_total_count[1m])) == 0"
)
_LONGEST_SECONDS = 31_536_000.0
_OF_VLLM = "and on (job, instance) last_over_time(vllm:num_requests_running[1h])"
_NEAREST: Mapping[str, tuple[str, str]] = {
    "engine_stall": (
        f"({_IN_FLIGHT}) and ({_NO_PROGRESS})",
        "Requests in flight and no progress for a minute; a watch says it after seconds, and never of one that sleeps.",
    ),
    "server_unreachable": (
        "up == 0",
        "Nothing answered the scrape; a watch tells apart engine, worker and API server that died, froze or stopped.",
    ),
    "crash_loop": (
        "changes(process_start_time_seconds[30m]) >= 3",
        "Three starts in half an hour, whether or not somebody asked for them.",
    ),
    "memory_growth": (
        "sum by (job, instance) (deriv(process_resident_memory_bytes[5m])) > 5000000",
        "The growth of five minutes; a watch also asks that it has not fallen between.",
    ),
}
"""Built-in guardrails for which Prometheus has something near: the expression, and how it is less."""


@dataclass(frozen=True, slots=True)
class RuleSet:
    """A rules file.

    Args:
        text: YAML.
        exported: Names of the guardrails that are in it.
        left_out: Name to reason of those that are not.
    """

    text: str
    exported: tuple[str, ...]
    left_out: Mapping[str, str]


def prometheus_rules(policies: Iterable[GuardrailPolicy]) -> RuleSet:
    """The rules file of these guardrails; those that are disabled are left out.

    Args:
        policies: All of them.
    """
    rules: list[str] = []
    exported: list[str] = []
    left_out: dict[str, str] = {}
    for policy in policies:
        if not policy.enabled:
            left_out[policy.name] = "it is disabled"
            continue
        try:
            rules += _rule(policy)
            exported.append(policy.name)
        except (NotExpressibleError, InvalidConditionError) as error:
            left_out[policy.name] = error.message if isinstance(error, InvalidConditionError) else str(error)
    head = [
        "# Guardrails of vllm-monitor as Prometheus alerting rules; made by `vllm-monitor guardrails export`.",
        *(["# Not in this file, because a page of vLLM alone cannot say them:"] if left_out else []),
        *(f"#   {_one_line(name)}: {_one_line(reason)}" for name, reason in left_out.items()),
    ]
    body = ["groups:", "  - name: vllm-monitor", "    rules:" if rules else "    rules: []", *rules]
    return RuleSet("\n".join([*head, *body]) + "\n", tuple(exported), left_out)


def _rule(policy: GuardrailPolicy) -> list[str]:
    condition = CompiledCondition(policy.condition)
    is_nearest = policy.metadata.get("built_in") is True and policy.name in _NEAREST
    expression, note = _NEAREST[policy.name] if is_nearest else (promql_of(condition.expression), "")
    if "vllm:" not in expression:  # up, process_* and http_* are everybody's
        expression = f"({expression}) {_OF_VLLM}"
    times = times_of(policy, condition.hold_seconds)
    if policy.target:
        raise NotExpressibleError(f"it is only for {policy.target}, which Prometheus may know by another name")
    annotations = {
        "summary": f"{_escaped(policy.description)} on {{{{ $labels.instance }}}}",
        "condition": _escaped(policy.condition),
        "runbook": _escaped(str(policy.metadata.get("runbook", ""))),
        "note": _escaped(note),
    }
    return [
        f"      - alert: {_quoted(policy.name)}",
        f"        expr: {_quoted(expression)}",
        *([f"        for: {_duration(times.hold)}"] if times.hold else []),
        *([f"        keep_firing_for: {_duration(times.keep_firing)}"] if times.keep_firing else []),
        "        labels:",
        f"          severity: {_quoted(policy.severity)}",
        "        annotations:",
        *(f"          {key}: {_quoted(text)}" for key, text in annotations.items() if text),
    ]


def _escaped(text: str) -> str:
    """Text that Prometheus, which expands templates in annotations, leaves as it is."""
    return text.replace("{{", '{{"{{"}}')


def _quoted(text: str) -> str:
    """Text for YAML: in double quotes, as JSON, with what YAML cannot hold made visible."""
    return json.dumps("".join(map(_visible, text)), ensure_ascii=False)


def _visible(character: str) -> str:
    is_plain = character.isprintable() or character in "\n\t"
    return character if is_plain else character.encode("unicode_escape").decode()


def _duration(seconds: float) -> str:
    if seconds > _LONGEST_SECONDS:
        raise NotExpressibleError("it waits for more than a year")
    return f"{round(seconds)}s" if seconds >= 1 else f"{max(1, round(seconds * 1000))}ms"


def _one_line(text: str) -> str:
    return "".join(map(_visible, " ".join(text.split())))
