"""A collector: how many tokens a finished request has had, of each server, as a metric of its own."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_monitor.records import PluginContext, PluginSample

PLUGIN = {
    "kind": "collector",
    "version": "1.0",
    "description": "Tokens per finished request.",
    "interval_seconds": 5.0,
}


def collect(context: PluginContext) -> Iterator[PluginSample]:
    for url, server in context["targets"].items():
        tokens = server["values"].get("generation_tokens_per_second")
        finished = server["values"].get("requests_finished_per_second")
        if tokens is not None and finished:
            yield {"name": "tokens_per_request", "value": tokens / finished, "target": url}
