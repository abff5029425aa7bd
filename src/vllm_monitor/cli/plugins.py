"""``vllm-monitor plugins``: code of the operator's own, and whether it is trusted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_monitor.cli.options import BackendOption, JsonOption, StorageDirOption, clean
from vllm_monitor.errors import ConfigurationError
from vllm_monitor.records import PluginKind, PluginState

if TYPE_CHECKING:
    from vllm_monitor.persistence import PersistenceManager
    from vllm_monitor.plugin_system import PluginManager, PluginStatus

__all__ = ["plugins"]

plugins = typer.Typer(
    no_args_is_help=True, help="Plugins: list, show, add, trust, switch, remove.", add_completion=False
)
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The plugin.")]
ConfigOption = Annotated[
    str | None,
    typer.Option("--config", help="Its settings as JSON, for example '{\"limit\": 3}'.", show_default=False),
]
_SOON = "a running watch takes it up within 10 s"


@contextmanager
def _opened(storage_dir: Path | None, backend: Any) -> Iterator[tuple[PersistenceManager, PluginManager]]:
    from vllm_monitor.cli.stored import config_of
    from vllm_monitor.guardrails import Guardrails
    from vllm_monitor.persistence import PersistenceManager
    from vllm_monitor.plugin_system import PluginManager, trust_list_of

    config = config_of(storage_dir, backend)
    with PersistenceManager(config, synchronous=True) as store:
        yield store, PluginManager(store, trust=trust_list_of(config), guardrails=Guardrails(store))


@plugins.command("list")
def list_all(storage_dir: StorageDirOption = None, backend: BackendOption = None, json: JsonOption = False) -> None:
    """Show every plugin, whether it may run, and if not, why."""
    with _opened(storage_dir, backend) as (store, known):
        entries = [_entry(one) for one in known.all()]
        damaged = store.health().damaged_rows
    if damaged:
        typer.echo("some of what is stored is damaged and left out: vllm-monitor check says what", err=True)
    if json:
        from json import dumps

        for entry in entries:
            typer.echo(dumps(entry, default=str))
        return
    if not entries:
        typer.echo("there are none yet: vllm-monitor plugins add FILE")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("name", "kind", "version", "state", "reason")
    for entry in entries:
        cells = (
            entry["name"],
            entry["kind"],
            entry["version"],
            entry["state"],
            entry["reason"] or entry["description"],
        )
        table.add_row(*(escape(clean(str(cell or "-"))) for cell in cells))
    Console().print(table)


@plugins.command("show")
def show(
    name: NameArgument, storage_dir: StorageDirOption = None, backend: BackendOption = None, json: JsonOption = False
) -> None:
    """Show a plugin: its source, its settings, what trust goes by, and what happened to it of late."""
    with _opened(storage_dir, backend) as (store, known):
        found, source = known.get(name), known.source_of(name)
        happened = [
            event
            for event in store.get_events(limit=1000)
            if event.event_type.startswith("plugin_")
            and event.data.get("plugin", name) == name
            and name in event.message
        ][:10]
    details = {
        **_entry(found),
        "config": found.record.config,
        "dependencies": list(found.record.dependencies),
        "metadata": found.record.metadata,
        "source": source,
        "events": [{"timestamp": one.timestamp, "message": one.message} for one in happened],
    }
    if json:
        from json import dumps

        typer.echo(dumps(details, default=str))
        return
    from vllm_monitor.terminal.format import iso_time

    for key in (
        "name",
        "kind",
        "version",
        "description",
        "state",
        "reason",
        "sha256",
        "target",
        "config",
        "dependencies",
    ):
        if details[key]:
            typer.echo(f"{key}: {clean(str(details[key]))}")
    for event in happened:
        typer.echo(f"{iso_time(event.timestamp)} {clean(event.message)}")
    for line in source.split("\n"):
        typer.echo(f"    {_all_of(line)}")


@plugins.command("add")
def add(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A Python file, or the name of a plugin that a package brings.")
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", help="What to call it (default: what it says, or the file).", show_default=False),
    ] = None,
    kind: Annotated[
        PluginKind | None, typer.Option("--kind", help="What it is for (default: what it says).", show_default=False)
    ] = None,
    config: ConfigOption = None,
    target: Annotated[
        str | None, typer.Option("--target", help="The only server it is for (default: all).", show_default=False)
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Take up, and trust, whatever the file holds from now on.")
    ] = False,
    storage_dir: StorageDirOption = None,
    backend: BackendOption = None,
) -> None:
    """Add a plugin, or replace the one of its name; its source is trusted from now on."""
    from vllm_monitor.cli.query import normalised

    settings = _parsed(config)
    with _opened(storage_dir, backend) as (_, known):
        is_installed = not Path(file).exists() and any(
            one.name == file and not one.record.source for one in known.all()
        )
        if is_installed:
            found = known.trust(file, config=settings)
        else:
            found = known.add_file(
                Path(file), name=name, plugin_type=kind, config=settings, target=normalised(target), follow=follow
            )
    _tell(found, f"{found.name} was added and is trusted")


@plugins.command("trust")
def trust(
    name: NameArgument,
    config: ConfigOption = None,
    storage_dir: StorageDirOption = None,
    backend: BackendOption = None,
) -> None:
    """Trust the source of a plugin as it is now, so that it runs. Read it first: vllm-monitor plugins show."""
    settings = _parsed(config)
    with _opened(storage_dir, backend) as (_, known):
        found = known.trust(name, config=settings)
    _tell(found, f"{clean(name)} is trusted (sha256 {found.sha256[:12]})")


@plugins.command("enable")
def enable(name: NameArgument, storage_dir: StorageDirOption = None, backend: BackendOption = None) -> None:
    """Switch a plugin on, also one that failed too often."""
    with _opened(storage_dir, backend) as (_, known):
        found = known.enable(name)
    _tell(found, f"{clean(name)} is on")


@plugins.command("disable")
def disable(name: NameArgument, storage_dir: StorageDirOption = None, backend: BackendOption = None) -> None:
    """Switch a plugin off; a running watch ends it within 10 s."""
    with _opened(storage_dir, backend) as (_, known):
        known.enable(name, enabled=False)
    typer.echo(f"{clean(name)} is off")


@plugins.command("remove")
def remove(name: NameArgument, storage_dir: StorageDirOption = None, backend: BackendOption = None) -> None:
    """Forget a plugin and the trust in it; what it has stored stays."""
    with _opened(storage_dir, backend) as (_, known):
        known.remove(name)
    typer.echo(f"{clean(name)} is gone")


def _all_of(line: str) -> str:
    """A line of source as it is, for one who decides whether to trust it: nothing hidden, nothing obeyed."""
    return "".join(
        character if character.isprintable() or character == "\t" else character.encode("unicode_escape").decode()
        for character in line
    )


def _parsed(config: str | None) -> dict[str, Any] | None:
    if config is None:
        return None
    from json import loads

    try:
        settings = loads(config)
    except ValueError as error:
        raise ConfigurationError(f"--config is no JSON: {error}", hint="write for example '{\"limit\": 3}'") from None
    if not isinstance(settings, dict):
        raise ConfigurationError("--config is no JSON object", hint="write for example '{\"limit\": 3}'")
    return settings


def _tell(found: PluginStatus, words: str) -> None:
    if found.state in (PluginState.READY, PluginState.RUNNING):
        typer.echo(f"{words}; {_SOON}")
    else:
        typer.echo(f"{words}, but it is {found.state}: {clean(found.reason)}")


def _entry(one: PluginStatus) -> dict[str, Any]:
    record = one.record
    return {
        "name": record.name,
        "kind": record.plugin_type,
        "version": record.version,
        "description": record.description,
        "state": one.state.value,
        "reason": one.reason,
        "sha256": one.sha256,
        "target": record.target,
    }
