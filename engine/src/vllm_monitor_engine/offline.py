"""Recording an engine that serves no HTTP: vLLM loads no stat loggers for ``LLM()``, so ours is added by hand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from vllm_monitor_engine.host_process import spool_name
from vllm_monitor_engine.recorder import Recorder
from vllm_monitor_engine.server_facts import in_flight_of, server_bounds, server_header
from vllm_monitor_engine.settings import EngineSettings
from vllm_monitor_engine.spool import Spool
from vllm_monitor_engine.startup_phases import StartupPhases
from vllm_monitor_engine.stat_logger import MonitorStatLogger

__all__ = ["record_engine"]


def record_engine(llm_engine: Any, spool_dir: Path, *, flush_seconds: float = 0.2) -> Recorder:
    """Record an ``LLMEngine`` of this process into a spool, from now on.

    Args:
        llm_engine: vLLM's, made with its statistics on (``disable_log_stats=False``).
        spool_dir: Where to; of this user alone.
        flush_seconds: How often it writes.

    Returns:
        The recorder, started; stop it before the spool is read to its end.

    Raises:
        ValueError: When the engine keeps no statistics.
    """
    loggers = getattr(getattr(llm_engine, "logger_manager", None), "stat_loggers", None)
    if not isinstance(loggers, list):
        msg = "this engine keeps no statistics: make it with disable_log_stats=False"
        raise ValueError(msg)
    settings = EngineSettings(enabled=True, spool_dir=spool_dir, flush_seconds=flush_seconds)
    config = getattr(llm_engine, "vllm_config", None)
    header = {**server_header(config, [0]), "port": None, "t": time.time()}
    recorder = Recorder(
        settings,
        Spool(spool_dir, spool_name(header), settings.spool_limit_bytes, header),
        bounds=server_bounds,
        in_flight=in_flight_of(getattr(llm_engine, "output_processor", None), time.time),
        startup=StartupPhases(header, config),
    )
    recorder.start()
    loggers.append(MonitorStatLogger(recorder=recorder))
    return recorder
