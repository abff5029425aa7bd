"""A detector: a queue that has grown for a while will not fit any more, and when."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from vllm_monitor.records import PluginContext, PluginWarning

PLUGIN = {
    "kind": "detector",
    "version": "1.0",
    "description": "A queue that grows without a pause.",
    "interval_seconds": 5.0,
    "config_schema": {
        "type": "object",
        "properties": {
            "most_waiting": {"type": "number", "minimum": 1, "default": 200},
            "looks": {"type": "integer", "minimum": 2, "default": 6},
        },
        "additionalProperties": False,
    },
}
queues: dict[str, list[tuple[float, float]]] = {}


def detect(context: PluginContext) -> Iterator[PluginWarning]:
    most, looks = context["config"]["most_waiting"], context["config"]["looks"]
    for url, server in context["targets"].items():
        waiting = server["values"].get("requests_waiting")
        if waiting is None:
            queues.pop(url, None)
            continue
        seen = queues.setdefault(url, [])
        seen.append((context["now"], waiting))
        del seen[:-looks]
        is_growing = all(after > before for (_, before), (_, after) in pairwise(seen))
        if len(seen) < looks or not is_growing or waiting >= most:
            continue
        per_second = (waiting - seen[0][1]) / max(1.0, context["now"] - seen[0][0])
        yield {
            "target": url,
            "failure_type": "queue_saturation",
            "probability": 0.7,
            "time_to_failure_seconds": (most - waiting) / per_second,
            "reasons": [f"the queue grows by {per_second:.2f} requests per second"],
        }
