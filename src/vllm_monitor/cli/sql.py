"""``vllm-monitor sql``: questions to the store in SQL, read-only."""

from __future__ import annotations

import csv
import math
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from vllm_monitor.cli.options import BackendOption, JsonOption, StorageDirOption, clean, parse_duration
from vllm_monitor.errors import ConfigurationError

__all__ = ["sql"]

TABLE_ROWS = 1000


def sql(
    statement: Annotated[str, typer.Argument(metavar="QUERY", help="One SELECT; - reads it from stdin.")],
    storage_dir: StorageDirOption = None,
    backend: BackendOption = None,
    samples: Annotated[
        list[str] | None,
        typer.Option("--samples", help="Unpack this metric into the table samples; repeatable.", show_default=False),
    ] = None,
    last: Annotated[
        str | None, typer.Option("--last", help="How far back --samples goes, for example 2h.", show_default=False)
    ] = None,
    json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Ask the store in SQL. Nothing can be changed. Samples are packed: name those you want with --samples."""
    from vllm_monitor.cli.stored import database_of, existing

    if json and as_csv:
        raise ConfigurationError("--json and --csv exclude each other", hint="give one of them")
    text = sys.stdin.read() if statement == "-" else statement
    config = existing(storage_dir, backend)
    with closing(sqlite3.connect("file::memory:", uri=True)) as connection:
        _attach(connection, database_of(config))
        if samples:
            _unpack(connection, config, samples, last)
        connection.set_authorizer(_only_reading)
        try:
            cursor = connection.execute(text)
            names = [column[0] for column in cursor.description or ()]
            if not names:
                raise ConfigurationError("the statement returns nothing", hint="write a SELECT")
            _print(names, cursor, as_json=json, as_csv=as_csv)
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise ConfigurationError(f"{error}", hint=_hint(str(error))) from error


def _only_reading(action: int, *_: str | None) -> int:
    """Lets a statement read, and nothing else: ATTACH and VACUUM INTO would make files."""
    reading = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
    return sqlite3.SQLITE_OK if action in reading else sqlite3.SQLITE_DENY


def _hint(problem: str) -> str:
    if "no such table: samples" in problem:
        return "name the metrics to unpack with --samples"
    if "not authorized" in problem or "prohibited" in problem:
        return "only reading is allowed: write a SELECT"
    tables = "checkpoints, predictions, mitigation_attempts, events, alerts, happy_paths ..."
    return f"tables are {tables}; see docs/persistence.md"


def _attach(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables of the store visible, by their own names and read-only."""
    connection.execute("ATTACH DATABASE ? AS store", (f"file:{quote(str(path.absolute()))}?mode=ro",))


def _unpack(connection: sqlite3.Connection, config: Any, names: list[str], last: str | None) -> None:
    """Fill a temporary table with the samples of some metrics."""
    from json import dumps

    from vllm_monitor.cli.query import find_series
    from vllm_monitor.clock import SystemClock
    from vllm_monitor.persistence import PersistenceManager

    connection.execute(
        "CREATE TEMP TABLE samples (timestamp REAL, target TEXT, metric_name TEXT, tags TEXT, value REAL)"
    )
    start_time = None if last is None else SystemClock().now() - parse_duration(last)
    with PersistenceManager(config, synchronous=True) as store:
        for name in names:
            for series in find_series(store, name, start_time=start_time):
                tags = dumps(dict(series.tags), default=str)
                points = zip((series.timestamps_ms / 1000).tolist(), series.values.tolist(), strict=True)
                rows = ((at, series.target, series.name, tags, value) for at, value in points)
                connection.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", rows)
    connection.commit()


def _print(names: list[str], cursor: sqlite3.Cursor, *, as_json: bool, as_csv: bool) -> None:
    if as_json:
        from json import dumps

        keys = _distinct(names)
        for row in cursor:
            typer.echo(dumps(dict(zip(keys, map(_json_value, row), strict=True)), default=str))
    elif as_csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(names)
        writer.writerows(map(_plain, row) for row in cursor)
    else:
        _print_table(names, cursor)


def _print_table(names: list[str], cursor: sqlite3.Cursor) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*(escape(clean(name)) for name in names))
    for row in cursor.fetchmany(TABLE_ROWS):
        table.add_row(*("" if value is None else escape(clean(str(_plain(value)))) for value in row))
    console = Console()
    console.print(table)
    if cursor.fetchone() is not None:
        console.print(f"only the first {TABLE_ROWS} rows are shown (--json or --csv prints all)")


def _plain(value: Any) -> Any:
    return f"{len(value)} bytes" if isinstance(value, bytes) else value


def _json_value(value: Any) -> Any:
    """JSON has no infinities; as everywhere in our JSON they are texts."""
    plain = _plain(value)
    return str(plain) if isinstance(plain, float) and not math.isfinite(plain) else plain


def _distinct(names: list[str]) -> list[str]:
    """Names of columns as keys: the second ``a`` is ``a_2``."""
    keys: list[str] = []
    for name in names:
        key, number = name, 1
        while key in keys:
            number += 1
            key = f"{name}_{number}"
        keys.append(key)
    return keys
