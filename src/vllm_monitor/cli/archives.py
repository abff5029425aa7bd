"""``vllm-monitor export`` and ``import``: the store as a folder that can be carried away."""

from __future__ import annotations

from pathlib import Path
from shutil import rmtree
from typing import Annotated, Any

import typer

from vllm_monitor.cli.options import BackendOption, JsonOption, StorageDirOption, clean, parse_duration, parse_time
from vllm_monitor.errors import ArchiveError, ConfigurationError

__all__ = ["export", "import_archive"]


def export(
    archive: Annotated[
        Path,
        typer.Argument(metavar="ARCHIVE", help="The folder to write; an older archive of the same store is replaced."),
    ],
    storage_dir: StorageDirOption = None,
    backend: BackendOption = None,
    last: Annotated[
        str | None, typer.Option("--last", help="How far back, for example 12h or 7d.", show_default=False)
    ] = None,
    start: Annotated[
        str | None, typer.Option("--start", help="From this time on (unix seconds or ISO).", show_default=False)
    ] = None,
    end: Annotated[
        str | None, typer.Option("--end", help="Up to this time (unix seconds or ISO).", show_default=False)
    ] = None,
    parquet: Annotated[
        bool, typer.Option("--parquet", help="Write Parquet files for analysis; they cannot be imported.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Write a consistent copy of the store into a folder, while it is in use."""
    from vllm_monitor.cli.progress import progress_bar
    from vllm_monitor.cli.stored import open_store
    from vllm_monitor.clock import SystemClock

    if last is not None and start is not None:
        raise ConfigurationError("--last and --start exclude each other", hint="give one of them")
    start_time = parse_time(start) if start is not None else None
    end_time = parse_time(end) if end is not None else None
    if last is not None:
        start_time = SystemClock().now() - parse_duration(last)
    with open_store(storage_dir, backend) as store, progress_bar("exporting") as progress:
        write = store.export_parquet if parquet else store.export_data
        report = write(archive, start_time, end_time, progress=progress)
    _show(report, f"exported to {archive}", json)


def import_archive(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="A folder that export wrote.")],
    storage_dir: StorageDirOption = None,
    backend: BackendOption = None,
    no_merge: Annotated[bool, typer.Option("--no-merge", help="Only into an empty store.")] = False,
    json: JsonOption = False,
) -> None:
    """Verify an archive and merge it into the store; what is there already is left alone.

    A folder of the earlier design (its monitor.db and JSON files) is imported too.
    """
    from vllm_monitor.cli.progress import progress_bar
    from vllm_monitor.cli.stored import config_of
    from vllm_monitor.persistence import PersistenceManager
    from vllm_monitor.persistence.archive.archive_files import read_manifest
    from vllm_monitor.persistence.legacy.legacy_import import import_legacy, is_legacy

    report: Any
    if not is_legacy(archive):
        read_manifest(archive)  # before a store is made for what is no archive
    config = config_of(storage_dir, backend)
    is_new = not config.storage_dir.exists()
    try:
        with PersistenceManager(config, synchronous=True) as store, progress_bar("importing") as progress:
            if is_legacy(archive):
                report = import_legacy(archive, store)
            else:
                report = store.import_data(archive, merge=not no_merge, progress=progress)
    except ArchiveError:
        if is_new:  # nothing was imported, so nothing is left behind
            rmtree(config.storage_dir, ignore_errors=True)
        raise
    _show(report, f"imported from {archive}", json)


def _show(report: Any, done: str, as_json: bool) -> None:
    from dataclasses import asdict

    facts = asdict(report)
    if as_json:
        from json import dumps

        typer.echo(dumps(facts, default=str))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table("what", "value")
    for name, value in facts.items():
        if isinstance(value, dict):
            for key, inner in value.items():
                table.add_row(escape(clean(f"{name}: {key}")), escape(clean(str(inner))))
        elif value not in (None, "", (), []):
            table.add_row(escape(clean(name)), escape(clean(str(value))))
    console.print(escape(clean(done)), soft_wrap=True)
    console.print(table)
