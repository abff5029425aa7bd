"""``vllm-monitor lifecycle``: the states that servers passed through, from the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from vllm_monitor.cli.options import JsonOption, LastOption, OneTargetOption, StorageDirOption, parse_duration

if TYPE_CHECKING:
    from vllm_monitor.records import StateCheckpoint

__all__ = ["lifecycle"]

MOST_CHECKPOINTS = 100_000


def lifecycle(
    storage_dir: StorageDirOption = None,
    last: LastOption = "24h",
    target: OneTargetOption = None,
    json: JsonOption = False,
) -> None:
    """Print the states that servers passed through, and how long each lasted. Oldest first."""
    from vllm_monitor.cli.query import normalised
    from vllm_monitor.cli.stored import open_store
    from vllm_monitor.clock import SystemClock

    now = SystemClock().now()
    with open_store(storage_dir) as store:
        found = store.get_checkpoints(
            start_time=now - parse_duration(last), target=normalised(target), limit=MOST_CHECKPOINTS
        )
    by_target: dict[str, list[StateCheckpoint]] = {}
    for checkpoint in reversed(found):
        by_target.setdefault(checkpoint.target, []).append(checkpoint)
    entries = [entry for checkpoints in by_target.values() for entry in _entries(checkpoints, now)]
    if json:
        from json import dumps

        for entry in entries:
            typer.echo(dumps(entry, separators=(",", ":")))
    else:
        _print_lines(entries, last)


def _entries(checkpoints: list[StateCheckpoint], now: float) -> list[dict[str, Any]]:
    from vllm_monitor.lifecycle_tracker import is_inside

    ends = [*(checkpoint.timestamp for checkpoint in checkpoints), now][1:]
    return [
        {
            "ts": one.timestamp,
            "target": one.target,
            "state": one.state.value,
            "previous_state": one.previous_state.value if one.previous_state is not None else None,
            "transition_type": one.transition_type.value if one.transition_type is not None else None,
            "condition": one.condition.value if one.condition is not None else None,
            "seconds": max(0.0, end - one.timestamp),
            "reason": one.reason,
            "phase": one.metadata.get("phase"),
            "inferred": bool(one.metadata.get("inferred", False)),
            "resumed": one.metadata.get("resumed"),
            "inside": one.metadata.get("inside") if is_inside(one) else None,
            "error_context": one.error_context,
        }
        for one, end in zip(checkpoints, ends, strict=True)
    ]


def _print_lines(entries: list[dict[str, Any]], last: str) -> None:
    from rich.console import Console
    from rich.text import Text

    from vllm_monitor.terminal.format import duration, iso_time
    from vllm_monitor.terminal.safe_text import Script

    console = Console()
    script = Script(console.encoding)
    if not entries:
        console.print(f"no server changed its state in the last {last}")
    target = None
    for entry in entries:
        if entry["target"] != target:
            target = entry["target"]
            console.print(Text(script.clean(target or "(no target)"), style="bold"), soft_wrap=True)
        resumed = entry["resumed"]
        words = entry["reason"]
        if entry["inferred"]:
            words = "passed through unseen"
        elif resumed is not None:
            meanwhile = "; ".join(resumed["meanwhile"]) or "as before"
            words = f"watched again after {duration(resumed['away_seconds'])} in which nobody did: {meanwhile}"
        elif entry["inside"] is not None:
            words = str(entry["inside"].get("words", words))
        elif entry["phase"] is not None:
            words = f"start: {entry['phase'].replace('_', ' ')}"
        state = f"{entry['state']:<22} {duration(entry['seconds']):>8}  {entry['condition'] or '-':<11}"
        console.print(Text(script.clean(f"  {iso_time(entry['ts'])} {state} {words}")), soft_wrap=True)
