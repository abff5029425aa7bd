"""``vllm-monitor report``: how good the predictions were, as tables, JSON and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_monitor.cli.options import (
    BackendOption,
    JsonOption,
    OneTargetOption,
    StorageDirOption,
    clean,
    parse_duration,
)
from vllm_monitor.errors import ConfigurationError
from vllm_monitor.records import FAILURE_TYPES

if TYPE_CHECKING:
    from rich.console import Console

    from vllm_monitor.report import FailureScore, ScoreReport

__all__ = ["report"]

# Lines that are broken here, and not by rich, keep the tables within 80 columns.
_OUTCOME_COLUMNS = (
    "type", "made", "happened", "did not\nhappen", "mitigated", "censored", "open", "false\nalarms\na day",
)  # fmt: skip
_LEAD_COLUMNS = ("type", "predicted", "recall", "lead\np10", "lead\nmedian", "lead\np90", "time\nerror", "in\ninterval")
_QUALITY_COLUMNS = ("type", "resolved", "precision", "Brier", "skill", "ECE", "note")


def report(
    storage_dir: StorageDirOption = None,
    target: OneTargetOption = None,
    failure_type: Annotated[
        str | None, typer.Option("--failure-type", help="Only this type (default: all).", show_default=False)
    ] = None,
    last: Annotated[
        str | None,
        typer.Option("--last", help="How far back, for example 12h or 30d (default: all of it).", show_default=False),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option("--pictures", help="Draw reliability.svg and lead_time.svg here.", show_default=False),
    ] = None,
    backend: BackendOption = None,
    json: JsonOption = False,
) -> None:
    """Say how good the predictions were: what came true, what was missed, how long before, how sure."""
    from vllm_monitor.cli.query import normalised
    from vllm_monitor.cli.stored import open_store
    from vllm_monitor.clock import SystemClock
    from vllm_monitor.report import score_report

    now = SystemClock().now()
    start = None if last is None else now - parse_duration(last)
    with open_store(storage_dir, backend) as store:
        found = score_report(store, target=normalised(target), failure_type=failure_type, start=start, now=now)
    drawn = [] if pictures is None else _draw(found, pictures)
    if json:
        from json import dumps

        typer.echo(dumps({**found.as_json(), "pictures": [str(path) for path in drawn]}))
        return
    _print_tables(found)
    for path in drawn:
        typer.echo(f"drawn: {clean(str(path))}")


def _draw(found: ScoreReport, folder: Path) -> list[Path]:
    from vllm_monitor.report import lead_time_picture, reliability_picture

    drawings = {"reliability.svg": reliability_picture(found), "lead_time.svg": lead_time_picture(found)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, drawing in drawings.items():
            (folder / name).write_text(drawing, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"the pictures cannot be written to {folder}: {error.strerror or error}",
            hint="name a folder that can be made and written to with --pictures",
        ) from error
    return [folder / name for name in drawings]


def _print_tables(found: ScoreReport) -> None:
    from rich.console import Console

    from vllm_monitor.report import RESOLVED_FOR_CALIBRATION
    from vllm_monitor.terminal.format import duration, iso_time

    console = Console()
    if found.is_empty:
        is_part = any(one is not None for one in (found.target, found.failure_type, found.start))
        of_that = " of that server, type and time" if is_part else ""
        console.print(f"no prediction and no failure is stored{of_that}", soft_wrap=True)
        if found.failure_type not in (None, *FAILURE_TYPES):
            console.print(f"types of ours are {', '.join(FAILURE_TYPES)}", soft_wrap=True)
        return
    watched = "no time that was watched"
    if found.watched_from is not None and found.watched_until is not None:
        span = duration(found.watched_until - found.watched_from)
        watched = f"{iso_time(found.watched_from)} to {iso_time(found.watched_until)} ({span})"
    console.print(f"predictions for {clean(found.target or 'all servers')}: {watched}", soft_wrap=True, markup=False)
    overall = found.scores.overall
    scores = [*found.scores.by_type, overall]
    _print_table(console, "What became of them", _OUTCOME_COLUMNS, [_outcomes(one) for one in scores])
    _print_table(console, "Failures that were predicted", _LEAD_COLUMNS, [_leads(one) for one in scores])
    _print_table(console, "How good they were", _QUALITY_COLUMNS, [_quality(one) for one in scores])
    if overall.failures_judged < overall.failures:
        since = iso_time(found.rows_complete_since)
        console.print(
            f"{overall.failures - overall.failures_judged} failures before {since} are not in recall and lead: "
            "predictions of that time have expired",
            soft_wrap=True,
        )
    if not overall.is_calibrated:
        console.print(
            f"uncalibrated: {overall.resolved} predictions are resolved, and below {RESOLVED_FOR_CALIBRATION} these "
            "figures are mostly luck",
            soft_wrap=True,
        )


def _print_table(console: Console, title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for number, row in enumerate(rows):
        is_overall = number == len(rows) - 1
        if is_overall:
            table.add_section()
        table.add_row(*(escape(clean(cell)) for cell in row), style="bold" if is_overall else None)
    console.print(table)
    console.print()


def _outcomes(one: FailureScore) -> tuple[str, ...]:
    from vllm_monitor.terminal.format import rate

    numbers = (one.predictions, one.happened, one.did_not_happen, one.mitigated, one.censored, one.open)
    return (_name(one), *(f"{number:,}" for number in numbers), rate(one.false_alarms_per_day))


def _leads(one: FailureScore) -> tuple[str, ...]:
    from vllm_monitor.terminal.format import UNKNOWN, latency, ratio

    lead, told = one.lead_seconds, one.time_to_failure
    figures = (None,) * 3 if lead is None else (lead.p10, lead.median, lead.p90)
    recall = f"{one.failures_predicted:,} of {one.failures_judged:,}" if one.failures_judged else UNKNOWN
    return (
        _name(one),
        recall,
        ratio(one.recall),
        *(latency(figure) for figure in figures),
        latency(told.median_seconds),
        ratio(told.interval_coverage),
    )


def _quality(one: FailureScore) -> tuple[str, ...]:
    from vllm_monitor.terminal.format import UNKNOWN, ratio

    found = one.calibration
    figures = (found.brier, found.brier_skill, found.ece)
    return (
        _name(one),
        f"{one.resolved:,}",
        ratio(one.precision),
        *(UNKNOWN if figure is None else f"{figure:.3f}" for figure in figures),
        "" if one.is_calibrated else "uncalibrated",
    )


def _name(one: FailureScore) -> str:
    return "all" if one.failure_type is None else one.failure_type
