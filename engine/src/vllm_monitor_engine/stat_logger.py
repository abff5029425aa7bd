"""The entry point of ``vllm.stat_logger_plugins``: hands every step of the server to our recorder.

An exception in ``record`` would end the server, one in ``log`` all its statistics, and both run on its event loop: so
each method here is one guarded line. What this vLLM offers is looked at when the module is imported, never its version:
where nothing fits, the import fails, which vLLM takes as a plugin that it leaves out.
"""

from __future__ import annotations

import abc
import contextlib
import time
from typing import Any

from vllm.v1.metrics import loggers

from vllm_monitor_engine.host_process import open_recorder
from vllm_monitor_engine.recorder import Recorder

__all__ = ["MonitorStatLogger"]

TIMED_EVERY = 64
"""One of so many calls is timed."""

# One object for all engines of a process where there is such a thing (it alone is told of rejections), else one each.
_Base: Any = getattr(loggers, "AggregateStatLoggerBase", None) or loggers.StatLoggerBase


class MonitorStatLogger(_Base):  # type: ignore[misc]  # what it is depends on the version
    """Appends each step to a buffer and returns. Without ``VLLMMON_ENABLED`` it does nothing at all.

    Args:
        vllm_config: vLLM's configuration.
        engine_indexes: The engines of this process.
        engine_index: The engine, where there is one object for each.
        recorder: One that is there already, for engines that load no plugins.
        further: Whatever else a version hands over.
    """

    def __init__(  # it does not call its base, which is abstract
        self,
        vllm_config: Any = None,
        engine_indexes: Any = None,
        engine_index: int = 0,
        *,
        recorder: Recorder | None = None,
        **further: Any,
    ) -> None:
        del further
        indexes = engine_indexes if isinstance(engine_indexes, list) else [engine_indexes or engine_index]
        self._calls_to_timed = TIMED_EVERY
        self._recorder = recorder if recorder is not None else open_recorder(vllm_config, indexes)

    def record(
        self,
        scheduler_stats: Any = None,
        iteration_stats: Any = None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
        *further: Any,
        **options: Any,
    ) -> None:
        """Take one step; called on the event loop, for every step of every engine."""
        del mm_cache_stats, further, options
        try:
            recorder = self._recorder
            if recorder is None:
                return
            self._calls_to_timed -= 1
            if self._calls_to_timed:
                recorder.record(engine_idx, scheduler_stats, iteration_stats)
                return
            self._calls_to_timed = TIMED_EVERY
            began = time.perf_counter()
            recorder.record(engine_idx, scheduler_stats, iteration_stats)
            recorder.timed.append(time.perf_counter() - began)
        except Exception:  # it must not be the server's
            self._failed()

    def record_sleep_state(self, *state: Any, **named: Any) -> None:
        """An engine fell asleep or woke up."""
        self._note("sleep", state, named)

    def record_admission_rejection(self, *reason: Any, **named: Any) -> None:
        """A request was refused before it reached an engine."""
        self._note("rejected", reason, named)

    def log_engine_initialized(self) -> None:
        """The engine is ready to take requests."""
        self._note("engine_initialized", (), {})

    def log(self) -> None:
        """Nothing: the thread writes by its own clock."""

    def _note(self, kind: str, values: tuple[Any, ...], named: dict[str, Any]) -> None:
        try:
            if self._recorder is not None:
                told = [value for value in (*values, *named.values()) if isinstance(value, (str, int, float))]
                self._recorder.note(kind, values=told)
        except Exception:  # likewise
            self._failed()

    def _failed(self) -> None:
        """A fault of ours: count it; when not even that goes, be silent from now on."""
        recorder, self._recorder = self._recorder, None
        with contextlib.suppress(Exception):
            if recorder is not None:
                recorder.faults += 1
                self._recorder = recorder


def _ignore(*_: Any, **__: Any) -> None:
    """What a later version may ask of a stat logger, and we do not know."""


# A method that is new and abstract would let the constructor fail, and with it the server.
for _name in tuple(getattr(MonitorStatLogger, "__abstractmethods__", ())):
    setattr(MonitorStatLogger, _name, _ignore)
abc.update_abstractmethods(MonitorStatLogger)
