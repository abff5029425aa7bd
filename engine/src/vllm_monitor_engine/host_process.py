"""The one recorder of this process: made by the first stat logger, shared by all of them and by the routes."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
from typing import Any

from vllm_monitor_engine.recorder import Recorder
from vllm_monitor_engine.server_facts import find_in_flight, server_bounds, server_header
from vllm_monitor_engine.settings import EngineSettings
from vllm_monitor_engine.spool import Spool

__all__ = ["current_recorder", "open_recorder"]

_log = logging.getLogger("vllm.vllm_monitor_engine")
_lock = threading.Lock()
_recorder: Recorder | None = None
_spools = 0


def open_recorder(vllm_config: Any, engine_indexes: list[int]) -> Recorder | None:
    """The recorder for an engine client that is being made, started; ``None`` when nothing is to be recorded.

    Never raises: without it the server works as it always did.
    """
    global _recorder, _spools
    try:
        settings = EngineSettings.from_environment()
        if not settings.enabled:
            return None
        for complaint in settings.complaints:
            _log.warning("vllm-monitor: %s", complaint)
        header = {**server_header(vllm_config, engine_indexes), "target_url": settings.target_url, "t": time.time()}
        with _lock:
            _spools += 1
            name = f"{os.getpid()}-{header['process_started'] or int(time.time())}-{_spools}"
        spool = Spool(settings.spool_dir, name, settings.spool_limit_bytes, header)
        recorder = Recorder(settings, spool, bounds=server_bounds, in_flight=find_in_flight(time.time))
        recorder.start()
        atexit.register(recorder.stop)
        _log.info("vllm-monitor: recording inside this server into %s (VLLMMON_ENABLED)", settings.spool_dir)
    except Exception:  # a guest that cannot work goes away
        with contextlib.suppress(Exception):
            _log.warning("vllm-monitor: cannot record inside this server, which goes on without it", exc_info=True)
        return None
    _recorder = recorder
    return recorder


def current_recorder() -> Recorder | None:
    """The recorder of the newest engine client of this process."""
    return _recorder
