"""Watches one live server: probes it on a grid of times and steps its pipeline.

The probes of a tick are started together. The step waits for page and health for at most half an interval, so a
server that does not answer delays nothing: its time-out arrives in a later tick, as a result like any other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from vllm_monitor.clock import Clock
from vllm_monitor.collectors import (
    Connections,
    EngineSpool,
    GpuCollector,
    LocalMachine,
    LogTail,
    ProcessCollector,
    ServerFacts,
    TargetProbe,
    host_and_port,
)
from vllm_monitor.core.config import MonitorConfig, TargetSettings
from vllm_monitor.core.pipeline import TargetPipeline, Tick
from vllm_monitor.errors import StorageError
from vllm_monitor.records import EngineObservation, Observation, VersionObservation

__all__ = ["TargetWatcher"]

_log = logging.getLogger(__name__)

VERSION_SECONDS = 60.0
LOAD_SECONDS = 5.0
PAUSE_SECONDS = 5.0
PROGRESS_SECONDS = 5.0
"""How often it is kept how far the inside was read: what came since is read again after a crash of the monitor."""
LATE_SECONDS = 1.5
"""From here on a late tick is worth an event: what was missed is our fault and not the server's."""


class TargetWatcher:
    """The probes of one target, and the loop that runs them.

    Belongs to one event loop.

    Args:
        target: Which server.
        config: Settings of the monitor.
        pipeline: Takes the observations.
        connections: HTTP connections shared by all watchers.
        machine: Looks at this machine's sockets and processes, shared by all watchers.
        gpus: Looks at the GPUs of this machine, shared by all watchers.
        host_thread: The one thread in which ``machine`` and ``gpus`` are used.
        clock: Where time comes from.
        on_tick: Called after each step, on the event loop.
        on_observation: Called with each result in the order of arrival, for recorders.
    """

    def __init__(
        self,
        target: TargetSettings,
        config: MonitorConfig,
        pipeline: TargetPipeline,
        *,
        connections: Connections,
        machine: LocalMachine,
        gpus: GpuCollector,
        host_thread: Executor,
        clock: Clock,
        on_tick: Callable[[Tick], None],
        on_observation: Callable[[Observation], None] | None = None,
    ) -> None:
        key = target.api_key or config.api_key
        self.url = target.url
        self._config = config
        self._pipeline = pipeline
        self._clock = clock
        self._on_tick = on_tick
        self._on_observation = on_observation
        self._probe = TargetProbe(
            target.url,
            clock=clock,
            connections=connections,
            api_key=key.get_secret_value() if key is not None else None,
            timeout_seconds=config.timeout_seconds,
            ca_file=str(config.ca_file) if config.ca_file is not None else None,
            insecure=config.insecure,
            max_page_bytes=config.max_page_bytes,
        )
        self._processes = ProcessCollector(target.url, clock, machine)
        folders = [] if config.spool_dir is None else [config.spool_dir]
        port = host_and_port(target.url)[1]
        self._inside = EngineSpool(target.url, folders, pipeline.inside_read, port=port)
        self._facts: ServerFacts | None = None
        self._gpus = gpus
        self._host_thread = host_thread
        self._log_tail = LogTail(target.log_file, target.url, clock) if target.log_file is not None else None
        self._arrived: list[Observation] = []
        self._running: dict[str, asyncio.Task[None]] = {}
        self._due_at: dict[str, float] = {}

    async def run(self, first_delay_seconds: float = 0.0) -> None:
        """Watch until cancelled.

        Args:
            first_delay_seconds: Wait this long before the first tick, so that many targets do not all begin at
                the same moment.
        """
        interval = self._config.interval_seconds
        try:
            await self._clock.sleep(first_delay_seconds)
            next_at = self._clock.monotonic()
            while True:
                await self._tick(interval)
                next_at += interval
                behind = self._clock.monotonic() - next_at
                if behind > interval:
                    next_at += interval * int(behind / interval)  # never run after lost ticks
                    if behind > LATE_SECONDS:
                        self._pipeline.note_late(self._clock.now(), behind)
                await self._clock.sleep(next_at - self._clock.monotonic())
        finally:
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)
            if self._log_tail is not None:
                self._log_tail.close()
            await self._save_progress()

    async def _tick(self, interval: float) -> None:
        awaited = [
            self._start("page", self._probe.scrape),
            self._start("health", self._probe.health),
            self._start("host", self._look_at_host),
        ]
        self._start_slow_probes()
        for line in self._log_tail.poll() if self._log_tail is not None else ():
            self._arrive(line)
        await asyncio.wait(awaited, timeout=interval / 2)
        arrived, self._arrived = self._arrived, []
        tick = self._pipeline.step(self._clock.now(), arrived)
        if any(event.event_type == "server_restarted" for event in tick.events):
            self._probe.server_restarted()
            self._due_at.pop("version", None)
        self._on_tick(tick)

    def _start_slow_probes(self) -> None:
        self._start_when_due("version", VERSION_SECONDS, self._ask_version)
        self._start_when_due("progress", PROGRESS_SECONDS, self._save_progress)
        self._start_when_due("load", LOAD_SECONDS, self._probe.load)
        suspicious = self._pipeline.picture.is_suspicious
        self._start_when_due("pause", 0.0 if suspicious else PAUSE_SECONDS, self._probe.is_paused)
        if self._config.canary and self._pipeline.picture.models:
            self._start_when_due("canary", self._config.canary_interval_seconds, self._send_canary)

    async def _save_progress(self) -> None:
        try:
            await asyncio.to_thread(self._pipeline.save_inside_progress)
        except StorageError as error:  # what is not kept is read again
            _log.warning("how far the inside of %s was read is not kept: %s", self.url, error)

    async def _ask_version(self) -> VersionObservation:
        observation = await self._probe.version()
        if observation.version is None and not observation.models:
            self._due_at["version"] = self._clock.monotonic() + self._config.interval_seconds
        return observation

    async def _send_canary(self) -> Observation:
        model = self._pipeline.picture.models[0]
        return await self._probe.canary(model, self._config.canary_timeout_seconds)

    async def _look_at_host(self) -> Observation | None:
        """Processes and GPUs; in a thread, because finding out whether a name is this machine asks the DNS."""
        loop = asyncio.get_running_loop()
        look = await loop.run_in_executor(self._host_thread, self._processes.collect)
        servers = () if look is None else [one.pid for one in look.processes if one.role == "api"]
        for told in await loop.run_in_executor(self._host_thread, self._look_inside, servers, look is not None):
            self._arrive(told)
        gpus = await loop.run_in_executor(self._host_thread, self._gpus.collect) if look is not None else None
        if gpus is not None:
            self._arrive(replace(gpus, target=self.url))
        facts = self._processes.facts
        if facts is not None and facts is not self._facts:
            self._facts = facts
            names = [gpu.name for gpu in gpus.gpus] if gpus is not None else []
            self._pipeline.set_facts(replace(facts, hardware_state={**facts.hardware_state, "gpus": names}))
        return look

    def _look_inside(self, servers: Sequence[int], is_local: bool) -> list[EngineObservation]:
        return self._inside.collect(servers, self._clock.now(), is_local=is_local)

    def _start_when_due(
        self, name: str, every_seconds: float, probe: Callable[[], Coroutine[Any, Any, Observation | None]]
    ) -> None:
        now = self._clock.monotonic()
        if now >= self._due_at.get(name, 0.0):
            # Half an interval of slack, or a probe due every 2 s would slip to every 3rd tick of 1 s.
            self._due_at[name] = now + every_seconds - self._config.interval_seconds / 2
            self._start(name, probe)

    def _start(self, name: str, probe: Callable[[], Coroutine[Any, Any, Observation | None]]) -> asyncio.Task[None]:
        """Start a probe unless the one before is still under way."""
        running = self._running.get(name)
        if running is None or running.done():
            running = self._running[name] = asyncio.create_task(self._ask(name, probe))
        return running

    async def _ask(self, name: str, probe: Callable[[], Coroutine[Any, Any, Observation | None]]) -> None:
        try:
            self._arrive(await probe())
        except Exception:  # a fault of ours must not end the watch; it is logged with its traceback
            _log.exception("the %s probe of %s failed", name, self.url)

    def _arrive(self, observation: Observation | None) -> None:
        if observation is None:
            return
        self._arrived.append(observation)
        if self._on_observation is not None:
            self._on_observation(observation)
