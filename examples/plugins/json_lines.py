"""An exporter: one line of JSON per server and turn, in a file."""

from __future__ import annotations

import json
from pathlib import Path

from vllm_monitor.records import PluginContext

PLUGIN = {
    "kind": "exporter",
    "version": "1.0",
    "description": "Writes what is seen into a file.",
    "interval_seconds": 10.0,
    "config_schema": {
        "type": "object",
        "properties": {"path": {"type": "string", "minLength": 1}},
        "required": ["path"],
        "additionalProperties": False,
    },
}


def export(context: PluginContext) -> None:
    said = ({"time": context["now"], "target": url, **server} for url, server in context["targets"].items())
    with Path(context["config"]["path"]).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in said)
