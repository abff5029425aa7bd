"""A guardrail plugin: one guardrail for each objective in its settings."""

from __future__ import annotations

from vllm_monitor.records import PluginContext, PluginGuardrail

PLUGIN = {
    "kind": "guardrail",
    "version": "1.0",
    "description": "A guardrail for each latency objective.",
    "config_schema": {
        "type": "object",
        "properties": {
            "seconds": {
                "type": "object",
                "additionalProperties": {"type": "number", "exclusiveMinimum": 0},
                "default": {"e2e_request_latency_p95_seconds": 30.0},
            }
        },
        "additionalProperties": False,
    },
}


def guardrails(context: PluginContext) -> list[PluginGuardrail]:
    return [
        {
            "name": f"objective_{metric}",
            "condition": f"{metric} > {float(limit)!r} && requests_running > 0.0 for 1m",
            "description": f"{metric} is over its objective",
            "severity": "warning",
        }
        for metric, limit in context["config"]["seconds"].items()
    ]
