"""A strategy: ask a load balancer to send a server less. Here the balancer is a file with a weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_monitor.records import PluginContext, PluginStrategy

PLUGIN = {
    "kind": "strategy",
    "version": "1.0",
    "description": "Halves the weight of a server in the load balancer.",
    "config_schema": {
        "type": "object",
        "properties": {"weight_file": {"type": "string", "minLength": 1}},
        "required": ["weight_file"],
        "additionalProperties": False,
    },
}


def describe(_context: PluginContext) -> PluginStrategy:
    return {
        "description": "Halves the weight of a server in the load balancer.",
        "needs": ["write access to the weight file"],
        "touches": ["new requests; those that run are left alone"],
        "verified_by": "requests_waiting has fallen",
        "undone_by": "the old weight",
    }


def act(context: PluginContext) -> dict[str, Any]:
    return _set(context, 50)


def undo(context: PluginContext) -> dict[str, Any]:
    return _set(context, 100)


def verify(context: PluginContext) -> bool:
    server = context["targets"].get(context["argument"]["target"])
    return server is not None and server["values"].get("requests_waiting", 1.0) == 0.0


def _set(context: PluginContext, weight: int) -> dict[str, Any]:
    if context["argument"].get("dry_run"):
        return {"done": False, "note": f"would set the weight to {weight}"}
    Path(context["config"]["weight_file"]).write_text(f"{weight}\n", encoding="utf-8")
    return {"done": True, "note": f"the weight is {weight}"}
