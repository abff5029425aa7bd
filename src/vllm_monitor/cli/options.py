"""Options that several commands share."""

from __future__ import annotations

import math
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_monitor.clock import SystemClock
from vllm_monitor.errors import ConfigurationError
from vllm_monitor.persistence import StorageBackend

if TYPE_CHECKING:
    from vllm_monitor.core import MonitorConfig

__all__ = [
    "ApiKeyOption",
    "BackendOption",
    "CaFileOption",
    "CanaryOption",
    "DurationOption",
    "InsecureOption",
    "IntervalOption",
    "JsonOption",
    "LastOption",
    "LogFileOption",
    "OneTargetOption",
    "StorageDirOption",
    "TemporaryUnlessGivenOption",
    "check_duration",
    "clean",
    "make_config",
    "parse_duration",
    "parse_time",
    "stop_on_signals",
]

SAME_REQUEST_SECONDS = 1.0

StorageDirOption = Annotated[
    Path | None,
    typer.Option(
        "--storage-dir",
        envvar="VLLMMON_STORAGE_DIR",
        help="Folder of the store (default: ~/.vllm_monitor).",
        show_default=False,
    ),
]
TemporaryUnlessGivenOption = Annotated[
    Path | None,
    typer.Option("--storage-dir", help="Folder of a store to keep (default: a temporary one).", show_default=False),
]
BackendOption = Annotated[
    StorageBackend | None,
    typer.Option("--backend", help="How the store is laid out (default: what the folder shows).", show_default=False),
]
IntervalOption = Annotated[
    float | None, typer.Option("--interval", help="Seconds between two scrapes (default: 1).", show_default=False)
]
DurationOption = Annotated[
    float | None, typer.Option("--duration", help="End after this many seconds.", show_default=False)
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option("--api-key", envvar="VLLMMON_API_KEY", help="Bearer token of the servers.", show_default=False),
]
LogFileOption = Annotated[
    Path | None, typer.Option("--log-file", help="The server's log, to see why it died.", show_default=False)
]
CanaryOption = Annotated[
    bool | None,
    typer.Option("--canary/--no-canary", help="Send a 1-token request every 2 s.", show_default=False),
]
CaFileOption = Annotated[
    Path | None, typer.Option("--ca-file", help="Certificates to trust for https.", show_default=False)
]
InsecureOption = Annotated[
    bool | None, typer.Option("--insecure", help="Do not verify https certificates.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
LastOption = Annotated[str, typer.Option("--last", help="How far back, for example 15m, 12h or 7d.")]
OneTargetOption = Annotated[
    str | None, typer.Option("--target", help="Only this server (default: all).", show_default=False)
]

MOST_TIME = 32_503_680_000.0
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def make_config(config_file: Path | None, **given: Any) -> MonitorConfig:
    """Settings from a file, the environment, and the options that were given (those that are not ``None``)."""
    from vllm_monitor.core import MonitorConfig

    chosen = {name: value for name, value in given.items() if value is not None}
    return MonitorConfig(**chosen) if config_file is None else MonitorConfig.from_toml(config_file, **chosen)


def clean(text: str) -> str:
    """Text from a server, a recording or a store, without anything that a terminal would obey."""
    from vllm_monitor.terminal.safe_text import Script

    return Script().clean(text)


def check_duration(seconds: float | None) -> None:
    """Refuse a ``--duration`` that is no time to run for.

    Raises:
        ConfigurationError: When it is not positive and finite.
    """
    if seconds is not None and not (0 < seconds < math.inf):
        raise ConfigurationError(f"--duration {seconds} makes no sense", hint="give a number of seconds above 0")


def parse_duration(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``15m``, ``2h``, ``7d`` or ``1w``.

    Raises:
        ConfigurationError: When it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw]?)", text.strip())
    if match is None:
        raise ConfigurationError(f"{text!r} is no duration", hint="write for example 90s, 15m, 2h or 7d")
    seconds = float(match[1]) * _UNITS[match[2] or "s"]
    if seconds > MOST_TIME:
        raise ConfigurationError(f"{text!r} is longer than anything lasts", hint="write for example 90s, 15m, 2h or 7d")
    return seconds


def parse_time(text: str) -> float:
    """Unix seconds of a number or of an ISO 8601 time (local when it has no offset).

    Raises:
        ConfigurationError: When it is neither.
    """
    try:
        seconds = float(text)
    except ValueError:
        pass
    else:
        if 0.0 <= seconds <= MOST_TIME:
            return seconds
        raise ConfigurationError(f"{text!r} is no time", hint="unix seconds lie between 0 and the year 3000")
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise ConfigurationError(
            f"{text!r} is no time", hint="write unix seconds or for example 2026-01-31T14:00:00"
        ) from error


@contextmanager
def stop_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` on the first SIGINT, SIGTERM or SIGHUP; a later one ends the process as usual.

    One that comes within a second of the first is the same request: timeout(1) and terminals signal a process and
    its group, and that must not cut the orderly end short.
    """
    asked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in asked}
    monotonic = SystemClock().monotonic
    first_at: float | None = None

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal first_at
        now = monotonic()
        if first_at is None:
            first_at = now
            stop()
        elif now - first_at > SAME_REQUEST_SECONDS:
            for known, handler in before.items():
                signal.signal(known, handler)
            os.kill(os.getpid(), number)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        if first_at is None:  # otherwise the process is ending, and a repeated signal must not cut that short
            for number, handler in before.items():
                signal.signal(number, handler)
