"""``create_monitored_engine``: an offline engine whose requests, steps and stalls are stored."""

from __future__ import annotations

import dataclasses
import importlib
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vllm_monitor.clock import Clock, SystemClock
from vllm_monitor.collectors import EngineSpool
from vllm_monitor.core import InsideStories, inside_event
from vllm_monitor.errors import ConfigurationError
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager

__all__ = ["MonitoredEngine", "create_monitored_engine"]

READ_SECONDS = 0.5
_INSTALL = "install it into this environment: pip install ./engine (from a checkout of vllm-monitor)"


class MonitoredEngine:
    """A ``vllm.LLM`` and the recording of it. Use it as a context manager; leaving ends it and stores what is left.

    Whatever it does not have itself (``generate``, ``chat``, ``get_metrics`` ...) is that of the ``LLM``.

    Args:
        llm: vLLM's.
        recorder: Of the part inside, started.
        spool_dir: Where it writes.
        store: Where it goes; ``None`` keeps nothing. Closed on leaving.
        target: Under which name it is stored.
        ttft_objective_seconds: Longest time to first token that is still good.
        inter_token_objective_seconds: Longest mean time between two tokens that is still good.
        clock: Where time comes from.
    """

    def __init__(
        self,
        llm: Any,
        recorder: Any,
        spool_dir: tempfile.TemporaryDirectory[str],
        store: PersistenceManager | None,
        *,
        target: str,
        ttft_objective_seconds: float = 2.0,
        inter_token_objective_seconds: float = 0.2,
        clock: Clock | None = None,
    ) -> None:
        self.llm = llm
        self.persistence_manager = store
        self.target = target
        self._recorder = recorder
        self._folder = spool_dir
        self._clock = clock or SystemClock()
        self._spool = EngineSpool(target, [Path(spool_dir.name)])
        self._target = target
        self._stories = InsideStories(
            target,
            store,
            ttft_objective_seconds=ttft_objective_seconds,
            inter_token_objective_seconds=inter_token_objective_seconds,
        )
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="vllm-monitor-offline", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.llm, name)

    def close(self) -> None:
        """End the engine, store what is left, and close the store; a second call does nothing.

        Its processes would otherwise be waited for when Python ends, for as long as anything holds the ``LLM``.
        """
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        _shut_down(self.llm)
        self._recorder.stop()
        self._store_what_came()
        if self.persistence_manager is not None:
            self.persistence_manager.close()
        self._folder.cleanup()

    def _run(self) -> None:
        while not self._ended.wait(READ_SECONDS):
            self._store_what_came()

    def _store_what_came(self) -> None:
        with self._lock:
            while told := self._spool.collect((os.getpid(),), self._clock.now()):
                for observation in told:
                    self._stories.save(observation)
            for note in self._stories.take_notes():
                event = inside_event(self._target, note)
                if event is not None and self.persistence_manager is not None:
                    self.persistence_manager.enqueue_event(event)


def create_monitored_engine(
    engine_args: Any,
    *,
    enable_persistence: bool = True,
    persistence_config: PersistenceConfig | None = None,
    target: str = "",
    **options: Any,
) -> MonitoredEngine:
    """Make a ``vllm.LLM`` whose requests are stored.

    Args:
        engine_args: What ``vllm.LLM`` takes: the name or folder of a model, a mapping of its arguments, or vLLM's
            ``EngineArgs``.
        enable_persistence: Whether it is stored.
        persistence_config: Where; by default the usual store.
        target: Under which name; ``offline:MODEL`` by default.
        options: Further arguments for ``vllm.LLM``.

    Raises:
        ConfigurationError: When vLLM or vllm-monitor-engine are not in this environment, or the arguments are none.
    """
    arguments = {**_arguments(engine_args), **options, "disable_log_stats": False}
    vllm = _import("vllm", "install vLLM into this environment")
    offline = _import("vllm_monitor_engine.offline", _INSTALL)
    llm = vllm.LLM(**arguments)
    folder = tempfile.TemporaryDirectory(prefix="vllm-monitor-offline-")
    recorder = offline.record_engine(llm.llm_engine, Path(folder.name))
    store = PersistenceManager(persistence_config) if enable_persistence else None
    return MonitoredEngine(
        llm, recorder, folder, store, target=target or f"offline:{Path(str(arguments.get('model', ''))).name}"
    )


def _arguments(engine_args: Any) -> dict[str, Any]:
    if isinstance(engine_args, str | Path):
        return {"model": str(engine_args)}
    if isinstance(engine_args, Mapping):
        return dict(engine_args)
    if dataclasses.is_dataclass(engine_args) and not isinstance(engine_args, type):
        # Only what was given: defaults of one of vLLM's classes are not always those of the other.
        return {
            field.name: getattr(engine_args, field.name)
            for field in dataclasses.fields(engine_args)
            if _differs(engine_args, field)
        }
    raise ConfigurationError(
        f"{type(engine_args).__name__} is nothing to make an engine of",
        hint="give the name of a model, a mapping of arguments, or vLLM's EngineArgs",
    )


def _differs(engine_args: Any, field: dataclasses.Field[Any]) -> bool:
    value = getattr(engine_args, field.name)
    if field.default is not dataclasses.MISSING:
        return value is not field.default and value != field.default
    if field.default_factory is not dataclasses.MISSING:
        return bool(value != field.default_factory())
    return True


def _shut_down(llm: Any) -> None:
    """End the engine of an ``LLM``, by whichever door its version has."""
    for owner in (llm, getattr(getattr(llm, "llm_engine", None), "engine_core", None)):
        shutdown = getattr(owner, "shutdown", None)
        if callable(shutdown):
            shutdown()
            return


def _import(name: str, hint: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigurationError(f"{name} cannot be imported: {error}", hint=hint) from error
