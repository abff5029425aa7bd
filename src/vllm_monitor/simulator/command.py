"""``vllm-monitor simulate``, whoever calls it."""

from __future__ import annotations

import asyncio
import math
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from vllm_monitor.clock import SystemClock
from vllm_monitor.errors import ConfigurationError
from vllm_monitor.simulator.faults import Fault, parse_fault
from vllm_monitor.simulator.server import FrontOptions, SimulatorServer
from vllm_monitor.simulator.settings import LoadSettings, ServerSettings
from vllm_monitor.simulator.simulator import Simulator

__all__ = ["SimulateOptions", "make_options", "run_simulation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions:
    """What the operator asked for.

    Args:
        front: How the server is reached.
        settings: Size, speed and load of the server.
        seed: Seed of all randomness.
        faults: Faults known in advance; times count from the start.
        duration_seconds: End after so many real seconds; ``None`` runs until a signal.
        ends_with_stdin: Also end when standard input is closed, which happens when the parent dies.
    """

    front: FrontOptions = field(default_factory=FrontOptions)
    settings: ServerSettings = field(default_factory=ServerSettings)
    seed: int = 0
    faults: tuple[Fault, ...] = ()
    duration_seconds: float | None = None
    ends_with_stdin: bool = False


def make_options(
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    seed: int = 0,
    rate: float = 2.0,
    faults: Iterable[str] = (),
    speed: float = 1.0,
    model: str = "simulated",
    dev_mode: bool = False,
    api_key: str | None = None,
    track_load: bool = False,
    restart_seconds: float = 30.0,
    no_restart: bool = False,
    client_timeout: float = 30.0,
    duration: float | None = None,
    end_with_stdin: bool = False,
) -> SimulateOptions:
    """Options from what was written on a command line.

    Args:
        host: Address to listen on.
        port: Port; 0 for any free one.
        seed: Seed of all randomness.
        rate: Background requests per simulated second.
        faults: Faults, each as :func:`parse_fault` reads it.
        speed: Simulated seconds per second.
        model: Name of the served model.
        dev_mode: Serve the development routes.
        api_key: Bearer token that guards ``/v1``.
        track_load: Let ``/load`` count requests.
        restart_seconds: How long a crashed server stays away, unless its fault says so.
        no_restart: A crashed server stays away for ever.
        client_timeout: Background clients hang up after so many simulated seconds.
        duration: End after so many real seconds; ``None`` runs until a signal.
        end_with_stdin: Also end when standard input is closed.

    Raises:
        ConfigurationError: When a value makes no sense.
    """
    if duration is not None and not 0 < duration < math.inf:
        raise ConfigurationError(f"--duration {duration} makes no sense", hint="Give a number of seconds above 0.")
    if not 0 <= port <= 65535:
        raise ConfigurationError(f"{port} is no port", hint="Give a number from 1 to 65535, or 0 for any free port.")
    load = LoadSettings(requests_per_second=rate, client_timeout_seconds=client_timeout)
    return SimulateOptions(
        front=FrontOptions(
            host=host, port=port, speed=speed, dev_mode=dev_mode, api_key=api_key, tracks_load=track_load
        ),
        settings=ServerSettings(load=load, model=model, restart_seconds=restart_seconds, restarts=not no_restart),
        seed=seed,
        faults=tuple(parse_fault(text) for text in faults),
        duration_seconds=duration,
        ends_with_stdin=end_with_stdin,
    )


def run_simulation(options: SimulateOptions, announce: Callable[[str], None]) -> None:
    """Serve until the duration is over, or SIGINT or SIGTERM arrives; call from the main thread.

    Args:
        options: What to simulate.
        announce: Gets one line, with the URL and the faults to come, as soon as the server is there.

    Raises:
        ConfigurationError: When the port is not to be had.
    """
    asyncio.run(_serve(options, announce))


async def _serve(options: SimulateOptions, announce: Callable[[str], None]) -> None:
    clock = SystemClock()
    simulator = Simulator(options.settings, seed=options.seed, faults=options.faults, start_time=clock.now())
    server = SimulatorServer(simulator, options.front, clock)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop)
    if options.ends_with_stdin:
        loop.add_reader(sys.stdin.fileno(), server.stop)
    await server.start()
    announce(_announcement(server.url, options))
    await server.run(options.duration_seconds)


def _announcement(url: str, options: SimulateOptions) -> str:
    rate = options.settings.load.requests_per_second
    faults = ", ".join(str(fault) for fault in options.faults) or "none"
    speed = f", {options.front.speed:g} times real time" if options.front.speed != 1.0 else ""
    return (
        f"simulated vLLM at {url} (model {options.settings.model}, seed {options.seed}, "
        f"{rate:g} requests/s{speed}); faults: {faults}"
    )
