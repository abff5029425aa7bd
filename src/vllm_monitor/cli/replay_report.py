"""How ``vllm-monitor replay --report`` shows what predictions were worth in a recording."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from vllm_monitor.cli.options import clean

if TYPE_CHECKING:
    from rich.console import Console

    from vllm_monitor.core import RecordingReport

__all__ = ["print_report", "print_summary"]


def print_report(console: Console, report: RecordingReport) -> None:
    """Predictions and failures of one recording in the order of their times."""
    from rich.markup import escape

    found = report.as_json()
    console.print(f"[bold]{escape(clean(report.recording))}[/bold]: {escape(clean(_situation(found)))}", soft_wrap=True)
    told = [(one["seconds"], _predicted(one)) for one in found["predictions"]]
    told += [(one["happened_seconds"], _happened(one)) for one in found["failures"]]
    for seconds, words in sorted(told):
        console.print(f"  {seconds:+8.1f} s  {escape(clean(words))}", soft_wrap=True)
    if not told:
        console.print("  nothing was predicted, and the server did not fail")


def _situation(found: dict[str, Any]) -> str:
    parts = [f"{found['ticks']} looks"]
    if found["injected_at"] is not None:
        parts.append("the injection is at 0 s")
    if found["first_client_error_seconds"] is not None:
        parts.append(f"first client error at {found['first_client_error_seconds']:+.1f} s")
    if found["requests"]:
        parts.append(f"{found['failed_requests']} of {found['requests']} requests failed")
    return ", ".join(parts)


def _predicted(one: dict[str, Any]) -> str:
    words = (
        f"predicted {one['failure_type']}: {one['probability']:.0%} within 300 s, {_sure(one)}expected in "
        f"{one['time_to_failure']:.0f} s ({one['time_to_failure_low']:.0f} to {one['time_to_failure_high']:.0f})"
    )
    if one["lead_seconds"] is not None:
        words += f"; it happened {one['lead_seconds']:.1f} s later"
    else:
        words += f"; {one['outcome'].replace('_', ' ')}"
    if one["seconds_before_client_error"] is not None:
        words += f"; {one['seconds_before_client_error']:.1f} s before the first client error"
    return f"{words}. {'; '.join(one['contributing_factors'])}"


def _sure(one: dict[str, Any]) -> str:
    return "" if one["calibrated"] else "uncalibrated, "


def _happened(one: dict[str, Any]) -> str:
    lead = "not predicted" if one["lead_seconds"] is None else f"predicted {one['lead_seconds']:.1f} s before"
    end = "" if one["ended_seconds"] is None else f", over at {one['ended_seconds']:+.1f} s"
    return f"happened  {one['failure_type']} ({lead}{end}): {one['reason']}"


def print_summary(console: Console, reports: list[RecordingReport]) -> None:
    """A line for each failure type of each recording that was predicted or has happened."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="seconds from the injection, or from the beginning where nothing was injected")
    for name in ("recording", "failure type", "predicted", "happened", "client error", "became of it"):
        table.add_column(name, overflow="fold")
    for report in reports:
        found = report.as_json()
        error = found["first_client_error_seconds"]
        kinds = dict.fromkeys(one["failure_type"] for one in (*found["predictions"], *found["failures"]))
        for kind in kinds or {"nothing": None}:
            predictions = [one for one in found["predictions"] if one["failure_type"] == kind]
            failures = [one["happened_seconds"] for one in found["failures"] if one["failure_type"] == kind]
            outcomes = Counter(one["outcome"].replace("_", " ") for one in predictions)
            table.add_row(
                escape(clean(report.recording)),
                kind,
                "-" if not predictions else f"{min(one['seconds'] for one in predictions):+.1f}",
                "-" if not failures else f"{min(failures):+.1f}",
                "-" if error is None else f"{error:+.1f}",
                ", ".join(f"{number} {words}" for words, number in outcomes.items()) or "-",
            )
    console.print(table)
