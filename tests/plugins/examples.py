"""Plugins for the tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from vllm_monitor.clock import ManualClock
from vllm_monitor.plugin_system import PluginManager, PluginStatus, TargetView

URL = "http://127.0.0.1:8000"

COUNTER = """
PLUGIN = {"kind": "collector", "version": "1.0", "description": "Counts its own turns."}
turns = 0

def collect(context):
    global turns
    turns += 1
    return {"my_turns": turns}
"""


def view(**changes: Any) -> TargetView:
    whole: dict[str, Any] = {
        "state": "serving",
        "condition": "ok",
        "condition_seconds": 1.0,
        "reason": "",
        "version": None,
        "models": [],
        "labels": {},
        "values": {"requests_running": 2.0},
        "alerts": [],
        **changes,
    }
    return whole  # type: ignore[return-value]  # built by key


@contextmanager
def managed(store: Any = None, **changes: Any) -> Iterator[tuple[PluginManager, ManualClock]]:
    """A manager whose turns happen within ``step``."""
    clock = ManualClock(1_700_000_000.0)
    manager = PluginManager(store, **{"clock": clock, "concurrent": False, **changes})
    manager.start()
    try:
        yield manager, clock
    finally:
        manager.close()


def turns(manager: PluginManager, clock: ManualClock, number: int, **targets: TargetView) -> None:
    """Give every plugin some turns."""
    for _ in range(number):
        manager.step(lambda: targets)
        clock.advance(100.0)


def processes() -> list[psutil.Process]:
    """Processes of plugins of this one."""
    found = psutil.Process().children()
    return [one for one in found if "plugin_system" in " ".join(one.cmdline()) and one.status() != "zombie"]


def only(manager: PluginManager) -> PluginStatus:
    (status,) = manager.all()
    return status
