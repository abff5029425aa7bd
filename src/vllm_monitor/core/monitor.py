"""``VLLMMonitor``: builds the rooms and runs the watchers."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from vllm_monitor.clock import Clock, SystemClock
from vllm_monitor.collectors import Connections, GpuCollector, LocalMachine
from vllm_monitor.core.config import MonitorConfig, TargetSettings
from vllm_monitor.core.follower import TargetFollower
from vllm_monitor.core.learned_loads import SAVE_SECONDS, LearnedLoads
from vllm_monitor.core.monitor_verbs import ENDED, MonitorVerbs
from vllm_monitor.core.pipeline import LONGEST_HOLE_SECONDS, TargetPipeline, Tick
from vllm_monitor.core.plugin_views import view_of
from vllm_monitor.core.watcher import TargetWatcher
from vllm_monitor.errors import ConfigurationError
from vllm_monitor.guardrails import AlertRouter, Guardrails, builtin_policies, parse_destination
from vllm_monitor.lifecycle_tracker import LifecycleTracker
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.plugin_system import PluginManager, trust_list_of
from vllm_monitor.predictive_failure_detection import PredictiveFailureDetector
from vllm_monitor.records import Event, Observation, Severity, TargetView

__all__ = ["VLLMMonitor"]

_log = logging.getLogger(__name__)

LEASE_RETRY_SECONDS = 5.0
RESTART_SECONDS = 5.0
GUARDRAILS_SECONDS = 20.0
PLUGINS_SECONDS = 5.0
TURN_SECONDS = 0.2
LOOKS_MISSED = 2
"""So many looks in a row may be missing before a prediction cannot be settled any more."""


class VLLMMonitor(MonitorVerbs):
    """Watches vLLM servers and remembers what it sees.

    Constructing starts no collection. :meth:`start` runs the watch in a thread of its own; :meth:`run` runs it in
    the calling thread. Every public method may be called from any thread.

    Args:
        config: Settings; by default from ``VLLMMON_*`` variables.
        enable_persistence: Keep samples and records in a store.
        persistence_config: Where and how; by default ``~/.vllm_monitor``.
        handle_signals: Flush on SIGTERM, then end as the handler before ours would. Main thread only.
        clock: Where time comes from.
    """

    def __init__(
        self,
        config: MonitorConfig | None = None,
        enable_persistence: bool = True,
        persistence_config: PersistenceConfig | None = None,
        *,
        handle_signals: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self.config = config if config is not None else MonitorConfig()
        self._clock = clock if clock is not None else SystemClock()
        self.persistence_manager: PersistenceManager | None = (
            PersistenceManager(persistence_config, clock=self._clock) if enable_persistence else None
        )
        self.lifecycle_tracker = LifecycleTracker(self.persistence_manager, clock=self._clock)
        self.guardrails = Guardrails(
            self.persistence_manager,
            built_in=builtin_policies(
                ttft_objective_seconds=self.config.ttft_objective_seconds,
                inter_token_objective_seconds=self.config.inter_token_objective_seconds,
            ),
        )
        self.plugin_manager = PluginManager(
            self.persistence_manager,
            trust=trust_list_of(self.persistence_manager.config, self._clock) if self.persistence_manager else None,
            guardrails=self.guardrails,
            interval_seconds=self.config.interval_seconds,
            clock=self._clock,
        )
        self._learned = LearnedLoads(self.persistence_manager)
        self.predictive_detector = PredictiveFailureDetector(
            self.config.prediction_settings(), self.persistence_manager
        )
        self._router = AlertRouter(
            (parse_destination(webhook.get_secret_value()) for webhook in self.config.alert_webhooks), clock=self._clock
        )
        self._lock = threading.RLock()
        self._targets: dict[str, TargetSettings] = {}
        self._latest: dict[str, Tick] = {}
        self._following: set[str] = set()
        self._leading: set[str] = set()
        self._listeners: list[Callable[[Tick], None]] = []
        self._observers: list[Callable[[Observation], None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._connections: Connections | None = None
        self._machine = LocalMachine(self._clock)
        self._gpus = GpuCollector("", self._clock)
        self._host_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vllm-monitor-host")
        self._thread: threading.Thread | None = None
        self._closed = False
        self._previous_sigterm: Any = None
        for url in self.config.targets:
            self.add_target(url)
        if handle_signals:
            self._previous_sigterm = signal.signal(signal.SIGTERM, self._on_sigterm)

    # -- targets ------------------------------------------------------------------------------------------------

    def add_target(
        self,
        url: str,
        *,
        api_key: str | None = None,
        log_file: str | Path | None = None,
        labels: dict[str, str] | None = None,
    ) -> str:
        """Watch one more server; at once when the watch is running.

        Args:
            url: The server's base URL (``host:port`` will do).
            api_key: Bearer token for this server.
            log_file: Its log, when it is on this machine.
            labels: Labels of your own.

        Returns:
            The URL under which the target is known from now on.

        Raises:
            ConfigurationError: When the URL makes no sense or is watched already.
        """
        target = TargetSettings(url=url, api_key=api_key, log_file=log_file, labels=labels or {})
        with self._lock:
            if target.url in self._targets:
                raise ConfigurationError(f"{target.url} is watched already", hint="name each target once")
            self._targets[target.url] = target
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._start_task, target, 0.0)
        return target.url

    def remove_target(self, url: str) -> None:
        """Stop watching a server; what is stored of it stays.

        Raises:
            ConfigurationError: When it is not watched.
        """
        normalised = TargetSettings(url=url).url
        with self._lock:
            if self._targets.pop(normalised, None) is None:
                raise ConfigurationError(
                    f"{normalised} is not watched", hint=f"watched are: {', '.join(self._targets) or 'none'}"
                )
            self._latest.pop(normalised, None)
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._cancel_task, normalised)

    def add_listener(self, listener: Callable[[Tick], None]) -> None:
        """Have ``listener`` called after every tick, in the thread of the watch."""
        self._listeners.append(listener)

    def add_observer(self, observer: Callable[[Observation], None]) -> None:
        """Have ``observer`` called with every result as it arrives, in the thread of the watch."""
        self._observers.append(observer)

    def latest(self) -> dict[str, Tick]:
        """The newest tick of every target that has had one."""
        with self._lock:
            return dict(self._latest)

    # -- running ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Watch in a background thread. Calling it again does nothing."""
        with self._lock:
            if self._closed:
                raise ConfigurationError("this monitor has been closed", hint="construct a new one")
            if self._thread is not None:
                return
            started = threading.Event()
            self._thread = threading.Thread(
                target=lambda: asyncio.run(self._main(None, started)), name="vllm-monitor", daemon=True
            )
            self._thread.start()
        started.wait(timeout=10.0)

    def run(self, duration_seconds: float | None = None) -> None:
        """Watch in the calling thread.

        Args:
            duration_seconds: Return after this long; ``None`` watches until :meth:`request_stop`.
        """
        asyncio.run(self._main(duration_seconds, None))

    def request_stop(self) -> None:
        """End :meth:`run` or the background thread soon. Safe in signal handlers and from any thread."""
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None and not loop.is_closed():
            loop.call_soon_threadsafe(stopping.set)

    def stop(self) -> None:
        """End the watch and flush everything. Calling it again does nothing."""
        self.request_stop()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=30.0)
            self._thread = None
        if self.persistence_manager is not None and not self._closed:
            self.persistence_manager.flush_all()

    def close(self) -> None:
        """Stop and close the store. Calling it again does nothing."""
        self.stop()
        if not self._closed:
            self._closed = True
            if self._previous_sigterm is not None:
                signal.signal(signal.SIGTERM, self._previous_sigterm)
            self._host_thread.shutdown(wait=False, cancel_futures=True)
            self._gpus.close()
            self._router.close()
            self.plugin_manager.close()
            if self.persistence_manager is not None:
                self.persistence_manager.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    # -- reading ------------------------------------------------------------------------------------------------

    def get_system_health(self) -> dict[str, Any]:
        """The condition of every target and of the store, as JSON values."""
        ticks = self.latest()
        return {
            "targets": {
                url: {
                    "state": ticks[url].snapshot.state.value,
                    "condition": ticks[url].snapshot.condition.value,
                    "reason": ticks[url].snapshot.reason,
                    "alerts": [alert.name for alert in ticks[url].firing],
                }
                if url in ticks
                else {"state": "not_started", "condition": "unknown", "reason": "not looked at yet", "alerts": []}
                for url in list(self._targets)
            },
            "following": sorted(self._following),
            "plugins": {
                one.name: {"state": one.state.value, "reason": one.reason} for one in self.plugin_manager.all()
            },
            "persistence": self.get_persistence_stats(),
        }

    # -- the loop -----------------------------------------------------------------------------------------------

    async def _main(self, duration_seconds: float | None, started: threading.Event | None) -> None:
        self._stopping = asyncio.Event()
        self._note("monitor_started", "the monitor has started")
        if self._gpus.unavailable_reason:
            _log.info("no GPU metrics: %s", self._gpus.unavailable_reason)
        async with Connections() as connections:
            with self._lock:
                self._connections, self._loop = connections, asyncio.get_running_loop()
                spread = self.config.interval_seconds / max(1, len(self._targets))
                for number, target in enumerate(self._targets.values()):
                    self._start_task(target, number * spread)
                self._tasks["guardrails"] = asyncio.create_task(self._take_up_guardrails())
                self._tasks["plugins"] = asyncio.create_task(self._take_up_plugins())
                self._tasks["learned loads"] = asyncio.create_task(self._save_what_is_learned())
                self._tasks["turns of plugins"] = asyncio.create_task(self._give_plugins_their_turns())
            if started is not None:
                started.set()
            try:
                async with asyncio.timeout(duration_seconds):
                    await self._stopping.wait()
            except TimeoutError:
                pass  # the asked-for duration is over
            finally:
                with self._lock:
                    self._loop = self._connections = None
                    tasks = list(self._tasks.values())
                    self._tasks.clear()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await asyncio.to_thread(self.plugin_manager.stop)
                self._note("monitor_stopped", "the monitor has stopped")

    async def _take_up_guardrails(self) -> None:
        """Guardrails that a person, or another process, has added, edited or switched meanwhile."""
        while True:
            await self._clock.sleep(GUARDRAILS_SECONDS)
            try:
                await asyncio.to_thread(self.guardrails.load)
            except Exception:  # the watch goes on with those that are known
                _log.exception("the guardrails cannot be loaded again")

    async def _take_up_plugins(self) -> None:
        """Plugins, and what became of them and of the trust in them meanwhile."""
        work = self.plugin_manager.start
        while True:
            try:
                await asyncio.to_thread(work)
                work = self.plugin_manager.refresh
            except Exception:  # the watch goes on with those that run
                _log.exception("the plugins cannot be loaded")
            await self._clock.sleep(PLUGINS_SECONDS)

    async def _save_what_is_learned(self) -> None:
        while True:
            await self._clock.sleep(SAVE_SECONDS)
            await self._learned.save()
            for url in sorted(self._leading):
                await asyncio.to_thread(self.predictive_detector.save, url)

    async def _give_plugins_their_turns(self) -> None:
        while True:
            await self._clock.sleep(TURN_SECONDS)
            if self._targets and not self._leading:
                continue  # another process watches them all, and runs the plugins
            try:
                self.plugin_manager.step(self._views)
            except Exception:  # whatever it is, the watch goes on
                _log.exception("the plugins could not be given their turns")

    def _views(self) -> dict[str, TargetView]:
        """The servers that this process itself watches, as plugins see them."""
        with self._lock:
            return {
                url: view_of(tick, self._targets[url].labels)
                for url, tick in self._latest.items()
                if url in self._leading and url in self._targets
            }

    def _start_task(self, target: TargetSettings, first_delay_seconds: float) -> None:
        connections = self._connections
        if connections is None:
            return  # the watch ended while a new target was on its way to it
        task = asyncio.get_running_loop().create_task(self._watch(target, connections, first_delay_seconds))
        self._tasks[target.url] = task

    def _cancel_task(self, url: str) -> None:
        task = self._tasks.pop(url, None)
        if task is not None:
            task.cancel()

    async def _watch(self, target: TargetSettings, connections: Connections, first_delay_seconds: float) -> None:
        """Watch one target for as long as it is to be watched, also after a fault of our own."""
        try:
            await self._follow_until_leading(target)
            self._leading.add(target.url)
            await asyncio.to_thread(self.lifecycle_tracker.resume, target.url)
            await asyncio.to_thread(self.guardrails.resume, target.url)
            for alert in self.guardrails.firing(target.url):
                self._router.resume(alert)
            self._note("watch_started", f"the watch of {target.url} has started", target=target.url)
            while True:
                pipeline = self._pipeline(target)
                try:
                    await asyncio.to_thread(self._resume, pipeline)
                    await self._learned.take_up(pipeline)
                    await self._watcher(target, pipeline, connections).run(first_delay_seconds)
                except Exception as error:  # whatever it is, a target must not go unwatched because of it
                    _log.exception("the watch of %s failed and begins anew", target.url)
                    self._note("watch_failed", f"the watch of {target.url} failed: {error!r}", Severity.CRITICAL)
                    first_delay_seconds = RESTART_SECONDS
                finally:
                    await self._learned.let_go(pipeline)
                    await asyncio.to_thread(self.predictive_detector.save, target.url)
                    if target.url not in self._targets:
                        self.predictive_detector.forget(target.url)
        finally:
            self._leading.discard(target.url)
            if self.persistence_manager is not None:
                self.persistence_manager.release_lease(target.url)

    def _resume(self, pipeline: TargetPipeline) -> None:
        """Take up what is stored; a target must not go unwatched, or unsettled, because some of it cannot be read."""
        try:
            self.predictive_detector.resume(pipeline.target)
        except Exception:
            _log.exception("what was learned of the failures of %s begins anew", pipeline.target)
        try:
            pipeline.resume(self._clock.now())
        except Exception:
            _log.exception("failures and predictions of %s begin anew", pipeline.target)

    def _pipeline(self, target: TargetSettings) -> TargetPipeline:
        return TargetPipeline(
            target.url,
            tracker=self.lifecycle_tracker,
            guardrails=self.guardrails,
            store=self.persistence_manager,
            labels=target.labels,
            predictor=self.predictive_detector if self.config.predict else None,
            source=self.plugin_manager,
            ttft_objective_seconds=self.config.ttft_objective_seconds,
            inter_token_objective_seconds=self.config.inter_token_objective_seconds,
            longest_hole_seconds=max(LONGEST_HOLE_SECONDS, (LOOKS_MISSED + 1) * self.config.interval_seconds),
        )

    def _watcher(self, target: TargetSettings, pipeline: TargetPipeline, connections: Connections) -> TargetWatcher:
        return TargetWatcher(
            target,
            self.config,
            pipeline,
            connections=connections,
            machine=self._machine,
            gpus=self._gpus,
            host_thread=self._host_thread,
            clock=self._clock,
            on_tick=self._on_tick,
            on_observation=self._on_observation if self._observers else None,
        )

    async def _follow_until_leading(self, target: TargetSettings) -> None:
        """Show what another process stores, until it gives the lease up or dies."""
        store = self.persistence_manager
        if store is None or store.acquire_lease(target.url):
            return
        self._following.add(target.url)
        _log.warning("another process watches %s into this store; showing what it stores", target.url)
        follower = TargetFollower(target.url, store, clock=self._clock, on_tick=self._on_tick)
        retry_at = self._clock.monotonic() + LEASE_RETRY_SECONDS
        while True:
            await asyncio.to_thread(follower.look)
            await self._clock.sleep(self.config.interval_seconds)
            if self._clock.monotonic() >= retry_at:
                retry_at = self._clock.monotonic() + LEASE_RETRY_SECONDS
                if store.acquire_lease(target.url):
                    self._following.discard(target.url)
                    return

    def _on_tick(self, tick: Tick) -> None:
        with self._lock:
            if tick.snapshot.target in self._targets:
                self._latest[tick.snapshot.target] = tick
        for alert in tick.alerts:
            self._router.send(alert)
        for checkpoint in tick.checkpoints:
            if checkpoint.state in ENDED and checkpoint.previous_state not in (None, *ENDED):
                asyncio.get_running_loop().run_in_executor(None, self._settle_run, checkpoint)
        for listener in self._listeners:
            try:
                listener(tick)
            except Exception:  # a guest's fault must not end the watch
                _log.exception("a listener failed")

    def _on_observation(self, observation: Observation) -> None:
        for observer in self._observers:
            try:
                observer(observation)
            except Exception:  # a guest's fault must not end the watch
                _log.exception("an observer failed")

    def _note(self, event_type: str, message: str, severity: Severity = Severity.INFO, *, target: str = "") -> None:
        if self.persistence_manager is not None:
            self.persistence_manager.enqueue_event(
                Event(
                    timestamp=self._clock.now(),
                    event_type=event_type,
                    message=message,
                    severity=severity,
                    target=target,
                    data={"pid": os.getpid(), "targets": sorted(self._targets)},
                )
            )

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        """Flush, then end as the handler before ours would."""
        self.close()
        previous = self._previous_sigterm
        if callable(previous):
            previous(number, frame)
        elif previous != signal.SIG_IGN:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
