"""``vllm-monitor events``: what happened, from the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from vllm_monitor.cli.options import JsonOption, LastOption, OneTargetOption, StorageDirOption, parse_duration
from vllm_monitor.records import Severity

if TYPE_CHECKING:
    from vllm_monitor.records import Event

__all__ = ["events"]

MOST_EVENTS = 100_000
_STYLES = {Severity.WARNING: "yellow", Severity.CRITICAL: "bold red"}


def events(
    storage_dir: StorageDirOption = None,
    last: LastOption = "24h",
    target: OneTargetOption = None,
    json: JsonOption = False,
) -> None:
    """Print what happened: conditions that changed, restarts, log lines, runs of the monitor. Oldest first."""
    from vllm_monitor.cli.query import normalised
    from vllm_monitor.cli.stored import open_store
    from vllm_monitor.clock import SystemClock

    start = SystemClock().now() - parse_duration(last)
    with open_store(storage_dir) as store:
        found = store.get_events(start_time=start, target=normalised(target), limit=MOST_EVENTS)
    found.reverse()
    if json:
        _print_json(found)
    else:
        _print_lines(found, last)


def _print_json(found: list[Event]) -> None:
    from json import dumps

    from vllm_monitor.core import event_as_json

    for event in found:
        entry = {"target": event.target, **event_as_json(event), "event_id": event.event_id, "data": event.data}
        typer.echo(dumps(entry, separators=(",", ":"), default=str))


def _print_lines(found: list[Event], last: str) -> None:
    from rich.console import Console
    from rich.text import Text

    from vllm_monitor.terminal.format import iso_time
    from vllm_monitor.terminal.safe_text import Script

    console = Console()
    script = Script(console.encoding)
    if not found:
        console.print(f"nothing happened in the last {last}")
    for event in found:
        words = f"{iso_time(event.timestamp)} {event.severity.value:<8} {event.target or 'monitor'}: {event.message}"
        console.print(Text(script.clean(words), style=_STYLES.get(event.severity, "")), soft_wrap=True)
