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

from vllm_monitor_engine.host_process import current_recorder, open_recorder
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
        is_for_all = isinstance(engine_indexes, list)
        self._engine = 0 if is_for_all else engine_indexes or engine_index
        self._calls_to_timed = TIMED_EVERY
        before = current_recorder()
        self._recorder = (
            recorder
            if recorder is not None
            else open_recorder(
                vllm_config, engine_indexes if is_for_all else [self._engine], is_one_of_several=not is_for_all
            )
        )
        self._tells_of_process = self._recorder is not before

    def record(
        self,
        scheduler_stats: Any = None,
        iteration_stats: Any = None,
        mm_cache_stats: Any = None,
        engine_idx: int | None = None,
        *further: Any,
        **options: Any,
    ) -> None:
        """Take one step; called on the event loop, for every step of every engine."""
        del mm_cache_stats, further, options
        try:
            recorder = self._recorder
            if recorder is None:
                return
            if engine_idx is None:
                engine_idx = self._engine
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
        try:
            if self._recorder is not None and self._tells_of_process:
                self._recorder.note("sleep", **_sleep_facts(state, named))
        except Exception:  # likewise
            self._failed()

    def record_admission_rejection(self, reason: Any = None, *further: Any, **named: Any) -> None:
        """A request was refused before it reached an engine; there may be thousands a second."""
        del further, named
        try:
            if self._recorder is not None:
                self._recorder.rejections.count(reason)
        except Exception:  # likewise
            self._failed()

    def log_engine_initialized(self) -> None:
        """The engine is ready to take requests."""
        try:
            if self._recorder is not None and self._tells_of_process:
                self._recorder.note("engine_initialized", **self._recorder.startup.reach("engine_initialized"))
        except Exception:  # likewise
            self._failed()

    def log(self) -> None:
        """Nothing: the thread writes by its own clock."""

    def _failed(self) -> None:
        """A fault of ours: count it; when not even that goes, be silent from now on."""
        recorder, self._recorder = self._recorder, None
        with contextlib.suppress(Exception):
            if recorder is not None:
                recorder.faults += 1
                self._recorder = recorder


def _sleep_facts(state: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """Whether the engine sleeps, and how deep: what is no number is left out.

    vLLM calls the first one ``sleep`` and, in its base class, ``is_awake``; it hands over 1 for sleep, by position. A
    level of 0 with sleep is one whose KV cache was given back.
    """
    asleep, level = (*state, None, None)[:2]
    if asleep is None:
        awake = named.get("is_awake")
        asleep = named.get("sleep") if awake is None else not awake
    facts = {"is_asleep": asleep if asleep is None else bool(asleep), "level": named.get("level", level)}
    return {name: value for name, value in facts.items() if isinstance(value, (bool, int))}


def _ignore(*_: Any, **__: Any) -> None:
    """What a later version may ask of a stat logger, and we do not know."""


# A method that is new and abstract would let the constructor fail, and with it the server.
for _name in tuple(getattr(MonitorStatLogger, "__abstractmethods__", ())):
    setattr(MonitorStatLogger, _name, _ignore)
abc.update_abstractmethods(MonitorStatLogger)
