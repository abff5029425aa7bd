"""The entry point of ``vllm.endpoint_plugins``: routes that move the levers, and the gate before the server.

vLLM loads it only where ``VLLM_PLUGINS`` names it, and then only what that names: our stat logger, and every other
plugin that is wanted, must be named there as well.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from vllm_monitor_engine.host_process import current_recorder
from vllm_monitor_engine.levers import Levers
from vllm_monitor_engine.middleware import Gate, gate_state
from vllm_monitor_engine.routes import MOUNT_PATH, Routes

__all__ = ["MonitorEndpoints"]

_log = logging.getLogger("vllm.vllm_monitor_engine")


class MonitorEndpoints:
    """The plugin, as vLLM wants it; none of its methods raises."""

    name = "vllm_monitor_levers"
    required_tasks = None

    def __init__(self) -> None:
        self._routes = Routes()

    def attach_router(self, app: Any) -> None:
        """Add the routes, and the gate."""
        try:
            app.mount(MOUNT_PATH, self._routes)
            app.add_middleware(Gate)  # where the operator has put in one as well, that one does the work
            _reached("application_built")
        except Exception:  # without levers the server works as it always did
            self._complain("cannot add its routes")

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Take the engine client; it is ``None`` on a server without engines."""
        del state, args
        try:
            if engine_client is not None:
                self._routes.levers = Levers(engine_client, gate_state(), note=_note, load=_load)
                _log.info("vllm-monitor: levers at %s", MOUNT_PATH)
            _reached("application_ready")
        except Exception:
            self._complain("has no levers")

    @staticmethod
    def _complain(what: str) -> None:
        with contextlib.suppress(Exception):
            _log.warning("vllm-monitor %s in this server, which goes on without", what, exc_info=True)


def _note(kind: str, **facts: Any) -> None:
    recorder = current_recorder()
    if recorder is None:
        return
    try:
        if kind == "lever" and facts.get("lever") in ("pause", "resume"):
            recorder.standing["paused"] = int(bool(facts.get("done")) == (facts["lever"] == "pause"))
        recorder.note(kind, **facts)
    except Exception:  # what was done is done, told or not
        recorder.faults += 1


def _reached(phase: str) -> None:
    """Of the phases before the last one only their times are told, with it."""
    recorder = current_recorder()
    if recorder is not None:
        facts = recorder.startup.reach(phase)
        if phase == "application_ready":
            recorder.note(phase, **facts)


def _load() -> tuple[float, float]:
    recorder = current_recorder()
    return (0.0, 0.0) if recorder is None else recorder.load()
