"""A panel: the servers with most to do, in the live view."""

from __future__ import annotations

from vllm_monitor.records import PluginContext, PluginPanel

PLUGIN = {"kind": "panel", "version": "1.0", "description": "The busiest servers.", "interval_seconds": 2.0}


def render(context: PluginContext) -> PluginPanel:
    busy = {url: server["values"].get("requests_running", 0.0) for url, server in context["targets"].items()}
    busiest = sorted(busy, key=lambda url: busy[url], reverse=True)[:5]
    return {"title": "busiest", "rows": [[url, f"{busy[url]:.0f} running"] for url in busiest]}
