"""``vllm-monitor happy-paths``: known-good executions, and how far later ones are from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_monitor.cli.options import (
    BackendOption,
    JsonOption,
    LastOption,
    StorageDirOption,
    clean,
    parse_duration,
    parse_time,
)
from vllm_monitor.errors import ConfigurationError

if TYPE_CHECKING:
    from vllm_monitor.happy_paths import HappyPaths
    from vllm_monitor.persistence import PersistenceManager
    from vllm_monitor.records import HappyPath

__all__ = ["happy_paths"]

happy_paths = typer.Typer(
    no_args_is_help=True, help="Known-good executions: record, list, show, compare.", add_completion=False
)
TargetOption = Annotated[
    str | None, typer.Option("--target", help="The server (needed when there are several).", show_default=False)
]
EndOption = Annotated[
    str | None, typer.Option("--end", help="Up to this time (unix seconds or ISO; default: now).", show_default=False)
]
PathArgument = Annotated[str, typer.Argument(metavar="PATH", help="A happy path, by its name or id.")]


@contextmanager
def _opened(storage_dir: Path | None, backend: Any) -> Iterator[tuple[PersistenceManager, HappyPaths]]:
    from vllm_monitor.cli.stored import existing
    from vllm_monitor.happy_paths import HappyPaths
    from vllm_monitor.persistence import PersistenceManager

    with PersistenceManager(existing(storage_dir, backend), synchronous=True) as store:
        yield store, HappyPaths(store)


def _execution(store: PersistenceManager, target: str | None, last: str, end: str | None) -> HappyPath:
    """What is stored of a server in a stretch of time."""
    from vllm_monitor.cli.query import normalised
    from vllm_monitor.clock import SystemClock
    from vllm_monitor.guardrails import Guardrails
    from vllm_monitor.happy_paths import execution_of

    known = [one for one in store.list_targets() if one]
    wanted = normalised(target)
    if wanted is None and len(known) != 1:
        raise ConfigurationError("which server?", hint=f"name it with --target: {', '.join(known) or 'there is none'}")
    if wanted is not None and wanted not in known:
        raise ConfigurationError(f"nothing is stored of {wanted}", hint=f"there are: {', '.join(known) or 'none'}")
    until = SystemClock().now() if end is None else parse_time(end)
    active = [one.policy.name for one in Guardrails(store).all() if one.policy.enabled]
    return execution_of(store, wanted or known[0], until - parse_duration(last), until, guardrails=active)


@happy_paths.command("record")
def record(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")],
    target: TargetOption = None,
    last: LastOption = "1h",
    end: EndOption = None,
    path_id: Annotated[str | None, typer.Option("--id", help="Replace the one of this id.", show_default=False)] = None,
    storage_dir: StorageDirOption = None,
    backend: BackendOption = None,
) -> None:
    """Keep what is stored of a server in a stretch of time as a known-good execution."""
    with _opened(storage_dir, backend) as (store, known):
        path = known.record(_execution(store, target, last, end), name, path_id)
    typer.echo(f"{clean(name)} is kept as {path.path_id}: {path.metadata['pages']} pages, load {_levels(path)}")


@happy_paths.command("list")
def list_all(storage_dir: StorageDirOption = None, backend: BackendOption = None, json: JsonOption = False) -> None:
    """Show every happy path."""
    with _opened(storage_dir, backend) as (_, known):
        entries = [_entry(path) for path in known.all()]
    if json:
        from json import dumps

        for entry in entries:
            typer.echo(dumps(entry, default=str))
        return
    for entry in entries or []:
        typer.echo(
            f"{entry['path_id'][:12]}  {clean(entry['name'])}: {clean(entry['target'] or 'any server')}, "
            f"{entry['pages']} pages, {entry['success_count']} good, {entry['failure_count']} bad"
        )
    if not entries:
        typer.echo("there are none yet: vllm-monitor happy-paths record NAME")


@happy_paths.command("show")
def show(
    path: PathArgument, storage_dir: StorageDirOption = None, backend: BackendOption = None, json: JsonOption = False
) -> None:
    """Show one: its states, its configuration, its figures by load."""
    from vllm_monitor.happy_paths import state_steps

    with _opened(storage_dir, backend) as (_, known):
        found = known.get(path)
    if json:
        from json import dumps

        details = {**_entry(found), "states": state_steps(found.checkpoints), "profile": found.metrics_profile}
        typer.echo(dumps(details, default=str))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    console.print(escape(clean(f"{found.name} ({found.path_id}) of {found.target or 'any server'}")), soft_wrap=True)
    steps = ", ".join(f"{state} {seconds:.0f} s" for state, seconds in state_steps(found.checkpoints))
    console.print(escape(clean(f"states: {steps}")), soft_wrap=True)
    table = Table("metric", "running", "pages", "mean", "std", "p50", "p95")
    for name, levels in found.metrics_profile.items():
        for level, figures in levels.items():
            cells = (f"{figures[key]:.4g}" for key in ("mean", "std", "p50", "p95"))
            table.add_row(escape(clean(name)), level, f"{figures['count']:.0f}", *cells)
    console.print(table)


@happy_paths.command("compare")
def compare_two(
    path: PathArgument,
    other: Annotated[
        str | None,
        typer.Argument(metavar="OTHER", help="Another one (default: what is stored of late).", show_default=False),
    ] = None,
    target: TargetOption = None,
    last: LastOption = "1h",
    end: EndOption = None,
    storage_dir: StorageDirOption = None,
    backend: BackendOption = None,
    json: JsonOption = False,
) -> None:
    """Say what is otherwise: of another happy path (before and after an upgrade), or of the last hour."""
    from vllm_monitor.happy_paths import compare

    with _opened(storage_dir, backend) as (store, known):
        before = known.get(path)
        after = known.get(other) if other is not None else _execution(store, target or before.target or None, last, end)
    found = compare(before, after)
    if json:
        from dataclasses import asdict
        from json import dumps

        typer.echo(dumps({**asdict(found), "score": found.score}, default=str))
        return
    if not found.levels:
        typer.echo("they have no load level in common with enough pages: nothing can be said of their figures")
    for one in found.deviations:
        typer.echo(f"{'worse' if one.is_worse else 'other' if one.is_worse is None else 'better'}  {clean(str(one))}")
    few = sorted({*_all_levels(before), *_all_levels(after)} - set(found.levels), key=_lowest)
    if found.levels and few:
        typer.echo(f"not compared, for want of pages on one side: {', '.join(few)} running")
    if found.levels and not found.deviations:
        typer.echo(f"as before, at {', '.join(found.levels)} running")


def _levels(path: HappyPath) -> str:
    return ", ".join(sorted(_all_levels(path), key=_lowest)) or "unknown"


def _all_levels(path: HappyPath) -> set[str]:
    return {level for figures in path.metrics_profile.values() for level in figures}


def _lowest(level: str) -> int:
    return int(level.partition("-")[0])


def _entry(path: HappyPath) -> dict[str, Any]:
    return {
        "path_id": path.path_id,
        "name": path.name,
        "target": path.target,
        "recorded_at": path.timestamp,
        "pages": path.metadata.get("pages", 0),
        "success_count": path.success_count,
        "failure_count": path.failure_count,
        "fingerprint": path.metadata.get("fingerprint"),
        "guardrails": path.guardrails,
    }
