"""``vllm-monitor query``: a range of a metric as table, JSON or CSV."""

from __future__ import annotations

import csv
import difflib
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_monitor.cli.options import JsonOption, StorageDirOption, clean, parse_duration, parse_time
from vllm_monitor.errors import ConfigurationError

if TYPE_CHECKING:
    from vllm_monitor.persistence import PersistenceManager, SeriesData

__all__ = ["find_series", "normalised", "query"]

TABLE_ROWS = 40


def query(
    metric: Annotated[str, typer.Argument(help="A name on the page (vllm:num_requests_running) or a canonical name.")],
    storage_dir: StorageDirOption = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Only this server (default: all).", show_default=False)
    ] = None,
    last: Annotated[
        str | None, typer.Option("--last", help="How far back, for example 15m or 2h.", show_default=False)
    ] = None,
    start: Annotated[
        str | None, typer.Option("--start", help="From this time on (unix seconds or ISO).", show_default=False)
    ] = None,
    end: Annotated[
        str | None, typer.Option("--end", help="Up to this time (unix seconds or ISO).", show_default=False)
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", help="Only series with NAME=VALUE; repeatable.", show_default=False),
    ] = None,
    json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Print the stored samples of a metric, and the gaps in them."""
    from vllm_monitor.cli.gaps import find_gaps
    from vllm_monitor.cli.stored import open_store
    from vllm_monitor.clock import SystemClock

    if json and as_csv:
        raise ConfigurationError("--json and --csv exclude each other", hint="give one of them")
    wanted: dict[str, str] = {}
    for text in label or []:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise ConfigurationError(f"--label {text!r} is not NAME=VALUE", hint="write for example --label engine=0")
        wanted[name] = value
    if last is not None and start is not None:
        raise ConfigurationError("--last and --start exclude each other", hint="give one of them")
    start_time = parse_time(start) if start is not None else None
    end_time = parse_time(end) if end is not None else None
    if last is not None:
        start_time = SystemClock().now() - parse_duration(last)
    url = normalised(target)
    with open_store(storage_dir) as store:
        found = find_series(store, metric, url, wanted, start_time, end_time)
        gaps = find_gaps(store, sorted({series.target for series in found}), start_time, end_time)
    if json:
        _print_json(metric, found, gaps)
    elif as_csv:
        _print_csv(found)
    else:
        _print_table(metric, found, gaps)


def normalised(target: str | None) -> str | None:
    """A target as the store knows it: a URL in its usual form, or the name of a recording as it is."""
    from vllm_monitor.collectors import normalise_target

    if target is None:
        return None
    try:
        return normalise_target(target)
    except ConfigurationError:
        return target  # replayed recordings are targets without a URL


def find_series(
    store: PersistenceManager,
    metric: str,
    target: str | None = None,
    tags: dict[str, str] | None = None,
    start_time: float | None = None,
    end_time: float | None = None,
) -> list[SeriesData]:
    """The samples of a metric by its name on the page or by its canonical name.

    Raises:
        ConfigurationError: When the store knows no such name.
    """
    from vllm_monitor.records.vocabulary import DERIVED, FAMILIES

    found = store.query_range(metric, target=target, tags=tags or None, start_time=start_time, end_time=end_time)
    known = sorted({series.name for series in store.list_series(target)})
    if found or metric in known or metric in {family.name for family in FAMILIES}:
        return found
    if metric in DERIVED:
        raise ConfigurationError(
            f"{metric} is computed by watch and not stored", hint="query the counter or gauge that it is computed from"
        )
    near = difflib.get_close_matches(metric, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "the store holds no samples of that name"
    raise ConfigurationError(f"no metric is called {metric}", hint=hint)


def _print_json(metric: str, found: list[SeriesData], gaps: list[dict[str, Any]]) -> None:
    from json import dumps
    from math import isfinite

    document = {
        "metric": metric,
        "series": [
            {
                "target": series.target,
                "name": series.name,
                "tags": series.tags,
                "points": [
                    [at / 1000, value if isfinite(value) else str(value)]
                    for at, value in zip(series.timestamps_ms.tolist(), series.values.tolist(), strict=True)
                ],
            }
            for series in found
        ],
        "gaps": gaps,
    }
    typer.echo(dumps(document, separators=(",", ":")))


def _print_csv(found: list[SeriesData]) -> None:
    writer = csv.writer(sys.stdout)
    writer.writerow(["timestamp", "target", "name", "labels", "value"])
    for series in found:
        labels = ";".join(f"{key}={value}" for key, value in sorted(series.tags.items()))
        for at, value in zip(series.timestamps_ms.tolist(), series.values.tolist(), strict=True):
            writer.writerow([at / 1000, series.target, series.name, labels, repr(value)])


def _print_table(metric: str, found: list[SeriesData], gaps: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not found:
        console.print(f"no samples of {escape(metric)} in that range")
    for series in found:
        table = Table("time", "value", title=escape(clean(f"{series.name} {series.tags or ''} {series.target}")))
        points = list(zip(series.timestamps_ms.tolist(), series.values.tolist(), strict=True))
        if len(points) > TABLE_ROWS:
            console.print(f"the last {TABLE_ROWS} of {len(points)} samples (--json or --csv prints all)")
        for at, value in points[-TABLE_ROWS:]:
            table.add_row(_local_time(at / 1000), f"{value:g}")
        console.print(table)
    for gap in gaps:
        console.print(
            f"gap: {_local_time(gap['from'])} to {_local_time(gap['to'])} ({gap['seconds']:.0f} s): {gap['reason']}"
        )


def _local_time(timestamp: float) -> str:
    try:
        moment = datetime.fromtimestamp(timestamp, UTC).astimezone()
    except (OverflowError, ValueError, OSError):
        return f"{timestamp:.3f} s"  # a year that the calendar does not have, in a store of an older version
    return moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{moment.microsecond // 1000:03d}"
