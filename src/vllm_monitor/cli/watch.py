"""``vllm-monitor watch``: the main job."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_monitor.cli.options import (
    ApiKeyOption,
    BackendOption,
    CaFileOption,
    CanaryOption,
    DurationOption,
    InsecureOption,
    IntervalOption,
    LogFileOption,
    StorageDirOption,
    check_duration,
    make_config,
    stop_on_signals,
)
from vllm_monitor.clock import SystemClock
from vllm_monitor.records import Event

if TYPE_CHECKING:
    from vllm_monitor.core import Tick, VLLMMonitor

__all__ = ["show", "watch"]


def watch(
    urls: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="URL...", help="Servers to watch, for example http://127.0.0.1:8000", show_default=False
        ),
    ] = None,
    storage_dir: StorageDirOption = None,
    backend: BackendOption = None,
    interval: IntervalOption = None,
    duration: DurationOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per target and tick.")] = False,
    api_key: ApiKeyOption = None,
    log_file: LogFileOption = None,
    canary: CanaryOption = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", help="Seconds to wait for an answer (default: 3).", show_default=False),
    ] = None,
    ca_file: CaFileOption = None,
    insecure: InsecureOption = None,
    store: Annotated[bool, typer.Option("--store/--no-store", help="Remember what is seen.")] = True,
    config: Annotated[
        Path | None, typer.Option("--config", help="Settings in a TOML file.", show_default=False)
    ] = None,
) -> None:
    """Watch vLLM servers: what they do, how they are, and what happened. Ctrl-C ends it."""
    from vllm_monitor.cli.stored import config_of
    from vllm_monitor.core import MonitorConfig, VLLMMonitor
    from vllm_monitor.errors import ConfigurationError

    settings = make_config(
        config,
        targets=tuple(urls) if urls else None,
        interval_seconds=interval,
        api_key=api_key,
        canary=canary,
        timeout_seconds=timeout,
        ca_file=ca_file,
        insecure=insecure,
    )
    if not settings.targets:
        raise ConfigurationError(
            "there is no server to watch", hint="give a URL, for example: vllm-monitor watch http://127.0.0.1:8000"
        )
    check_duration(duration)
    if log_file is not None and len(settings.targets) != 1:
        raise ConfigurationError("--log-file goes with one server", hint="watch each server with its own command")
    in_file = {} if config is None else MonitorConfig.store_settings(config)
    targets, settings = settings.targets, settings.model_copy(update={"targets": ()})
    monitor = VLLMMonitor(
        settings,
        enable_persistence=store,
        persistence_config=config_of(storage_dir, backend, **{"required": False, **in_file}) if store else None,
    )
    try:
        for url in targets:
            monitor.add_target(url, log_file=log_file)
        if json:
            _print_json(monitor, duration)
        else:
            show(monitor, duration)
    finally:
        monitor.close()


def _print_json(monitor: VLLMMonitor, duration_seconds: float | None) -> None:
    from json import dumps

    from vllm_monitor.core import tick_as_json

    fault: OSError | None = None

    def on_tick(tick: Tick) -> None:
        nonlocal fault
        try:
            typer.echo(dumps(tick_as_json(tick), separators=(",", ":")))
        except OSError as error:
            fault = error
            monitor.request_stop()

    monitor.add_listener(on_tick)
    with stop_on_signals(monitor.request_stop):
        monitor.run(duration_seconds)
    if isinstance(fault, BrokenPipeError):
        raise BrokenPipeError  # without its number, or click would end the process with its own exit code
    if fault is not None:
        raise fault


def show(monitor: VLLMMonitor, duration_seconds: float | None) -> None:
    """The live terminal view of a monitor, until Ctrl-C or the end of ``duration_seconds``."""
    from vllm_monitor.cli.store_line import StoreLines, store_description
    from vllm_monitor.terminal import LiveView

    events: deque[Event] = deque(maxlen=1000)
    ticked, done = threading.Event(), threading.Event()

    def on_tick(tick: Tick) -> None:
        events.extend(tick.events)
        ticked.set()

    monitor.add_listener(on_tick)
    store_lines = StoreLines(monitor.persistence_manager)
    view = LiveView(store_description=store_description(monitor.persistence_manager))
    clock = SystemClock()
    ends_at = None if duration_seconds is None else clock.monotonic() + duration_seconds

    def stop() -> None:
        done.set()
        ticked.set()

    with stop_on_signals(stop), view:
        monitor.start()
        while not done.is_set() and (ends_at is None or clock.monotonic() < ends_at):
            ticked.wait(timeout=0.5)
            if not ticked.is_set():
                continue
            ticked.clear()
            fresh = [events.popleft() for _ in range(len(events))] + monitor.plugin_manager.take_events()
            ticks = list(monitor.latest().values())
            view.update(
                [tick.snapshot for tick in ticks],
                fresh,
                store_lines.newest(),
                monitor.plugin_manager.panels(),
                [prediction for tick in ticks for prediction in tick.expected],
            )
            done.wait(timeout=0.2)  # many targets: draw a few times a second, not once per target
        monitor.stop()
        view.update([tick.snapshot for tick in monitor.latest().values()], [], store_lines.newest(count=True))
