"""The one recorder of this process: made by the first stat logger, shared by all of them and by the routes."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from vllm_monitor_engine.middleware import gate_state
from vllm_monitor_engine.recorder import Recorder
from vllm_monitor_engine.rejections import Rejections
from vllm_monitor_engine.server_facts import find_in_flight, server_bounds, server_header
from vllm_monitor_engine.settings import EngineSettings
from vllm_monitor_engine.spool import Spool
from vllm_monitor_engine.startup_phases import StartupPhases

__all__ = ["current_recorder", "open_recorder", "spool_name"]

_log = logging.getLogger("vllm.vllm_monitor_engine")
_lock = threading.Lock()
_recorder: Recorder | None = None
_config: Any = None
_spools = 0


def open_recorder(vllm_config: Any, engine_indexes: list[int], *, is_one_of_several: bool = False) -> Recorder | None:
    """The recorder for an engine client that is being made, started; ``None`` when nothing is to be recorded.

    Never raises: without it the server works as it always did.

    Args:
        vllm_config: vLLM's configuration.
        engine_indexes: The engines of this client, or the one that is asked for.
        is_one_of_several: Whether it is asked for once for each engine: they share one, or each would tell of all the
            requests in flight, and take the work of the other engines for none.
    """
    global _config, _recorder
    if is_one_of_several and _recorder is not None and _config is vllm_config:
        return _recorder
    try:
        settings = EngineSettings.from_environment()
        if not settings.enabled:
            return None
        for complaint in settings.complaints:
            _log.warning("vllm-monitor: %s", complaint)
        header = {**server_header(vllm_config, engine_indexes), "target_url": settings.target_url, "t": time.time()}
        spool = Spool(settings.spool_dir, spool_name(header), settings.spool_limit_bytes, header)
        recorder = Recorder(
            settings,
            spool,
            bounds=server_bounds,
            in_flight=find_in_flight(time.time),
            # One gate for all recorders of a process: the newest tells of it, so that nothing is counted twice.
            rejections=Rejections(lambda: gate_state().refused if current_recorder() is recorder else {}),
            other_faults=lambda: gate_state().faults if current_recorder() is recorder else 0,
            startup=StartupPhases(header, vllm_config),
            shares_engines=header.get("api_servers", 1) > 1,
        )
        recorder.start()
        atexit.register(recorder.stop)
        _log.info("vllm-monitor: recording inside this server into %s (VLLMMON_ENABLED)", settings.spool_dir)
    except Exception:  # a guest that cannot work goes away
        with contextlib.suppress(Exception):
            _log.warning("vllm-monitor: cannot record inside this server, which goes on without it", exc_info=True)
        return None
    _recorder, _config = recorder, vllm_config
    return recorder


def spool_name(header: Mapping[str, Any]) -> str:
    """A name that no other spool has had since boot: process, when it began, and a number within it."""
    global _spools
    with _lock:
        _spools += 1
        return f"{os.getpid()}-{header.get('process_started') or int(time.time())}-{_spools}"


def current_recorder() -> Recorder | None:
    """The recorder of the newest engine client of this process."""
    return _recorder
