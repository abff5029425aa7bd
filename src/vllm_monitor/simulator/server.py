"""The simulated server in real time, behind a real port."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from vllm_monitor.clock import Clock, SystemClock
from vllm_monitor.errors import ConfigurationError
from vllm_monitor.simulator.beat import Beat
from vllm_monitor.simulator.listener import Listener
from vllm_monitor.simulator.routes import make_application
from vllm_monitor.simulator.simulator import Simulator

__all__ = ["FrontOptions", "SimulatorServer"]

_TICK_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontOptions:
    """How the simulated server is reached.

    Args:
        host: Address to listen on.
        port: Port; 0 for any free one.
        speed: Simulated seconds per second.
        dev_mode: Serve the development routes.
        api_key: Bearer token that guards ``/v1``.
        tracks_load: Whether ``/load`` counts requests, as with ``--enable-server-load-tracking``.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    speed: float = 1.0
    dev_mode: bool = False
    api_key: str | None = None
    tracks_load: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.speed <= 10_000:
            raise ConfigurationError(f"speed = {self.speed} makes no sense", hint="Give 1 for real time.")


class SimulatorServer:
    """Drives a :class:`Simulator` with a clock and shows it on a port. Lives in one event loop.

    Args:
        simulator: What is shown.
        options: How it is reached.
        clock: Whose time passes.

    Raises:
        ConfigurationError: When the port is not to be had.
    """

    def __init__(self, simulator: Simulator, options: FrontOptions | None = None, clock: Clock | None = None) -> None:
        self.simulator = simulator
        self._options = options or FrontOptions()
        self._clock = clock or SystemClock()
        self._beat = Beat()
        self._listener = Listener(self._options.host, self._options.port)
        self._shown: object = None
        self._stopping = asyncio.Event()
        self._make_application = partial(
            make_application,
            simulator,
            self._beat,
            self._clock,
            speed=self._options.speed,
            dev_mode=self._options.dev_mode,
            api_key=self._options.api_key,
            tracks_load=self._options.tracks_load,
        )

    @property
    def url(self) -> str:
        """Where the server is, also while its port is closed."""
        return self._listener.url

    async def start(self) -> None:
        """Open the port, unless the simulated server is still starting.

        Raises:
            ConfigurationError: When another program listens on the port.
        """
        await self._follow()

    async def run(self, duration_seconds: float | None = None) -> None:
        """Let time pass until :meth:`stop`, or for so many seconds; then give the port back."""
        begun = last = self._clock.monotonic()
        try:
            while not self._stopping.is_set():
                await self._clock.sleep(_TICK_SECONDS)
                now = self._clock.monotonic()
                self.simulator.advance((now - last) * self._options.speed)
                last = now
                self._beat.strike()
                await self._follow()
                if duration_seconds is not None and now - begun >= duration_seconds:
                    break
        finally:
            await self._listener.release()

    def stop(self) -> None:
        """End :meth:`run` soon."""
        self._stopping.set()

    async def _follow(self) -> None:
        """Open and close the port as the simulated server does; every life of it is a new application."""
        life = self.simulator.life
        if life is self._shown:
            return
        if self._shown is not None:
            await self._listener.close()
        self._shown = None
        if life is not None:
            application: web.Application = self._make_application()
            await self._listener.open(application)
            self._shown = life
