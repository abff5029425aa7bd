"""How ``vllm-monitor replay --report`` shows what predictions were worth in a recording."""

from __future__ import annotations

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
    console.print(f"[bold]{escape(clean(report.recording))}[/bold]: {_situation(found)}", soft_wrap=True)
    told = [(one["seconds"], _predicted(one)) for one in found["predictions"]]
    told += [(one["happened_seconds"], _happened(one)) for one in found["failures"]]
    for seconds, words in sorted(told):
        console.print(f"  {seconds:+8.1f} s  {escape(clean(words))}", soft_wrap=True)
    if not told:
        console.print("  nothing was predicted, and nothing failed")


def _situation(found: dict[str, Any]) -> str:
    parts = [f"{found['ticks']} looks"]
    if found["fault"]:
        parts.append(f"{found['fault']} injected at 0 s")
    if found["first_client_error_seconds"] is not None:
        parts.append(f"first client error at {found['first_client_error_seconds']:+.1f} s")
    if found["requests"]:
        parts.append(f"{found['failed_requests']} of {found['requests']} requests failed")
    return ", ".join(parts)


def _predicted(one: dict[str, Any]) -> str:
    words = (
        f"predicted {one['failure_type']}: {one['probability']:.0%} within 300 s, expected in "
        f"{one['time_to_failure']:.0f} s ({one['time_to_failure_low']:.0f} to {one['time_to_failure_high']:.0f})"
    )
    if one["lead_seconds"] is not None:
        words += f"; it happened {one['lead_seconds']:.1f} s later"
    else:
        words += f"; {one['outcome'].replace('_', ' ')}"
    if one["seconds_before_client_error"] is not None:
        words += f"; {one['seconds_before_client_error']:.1f} s before the first client error"
    return f"{words}. {'; '.join(one['contributing_factors'])}"


def _happened(one: dict[str, Any]) -> str:
    lead = "not predicted" if one["lead_seconds"] is None else f"predicted {one['lead_seconds']:.1f} s before"
    end = "" if one["ended_seconds"] is None else f", over at {one['ended_seconds']:+.1f} s"
    return f"happened  {one['failure_type']} ({lead}{end}): {one['reason']}"


def print_summary(console: Console, reports: list[RecordingReport]) -> None:
    """One line for each recording."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("recording", "predicted at", "failed at", "first client error", "lead before it", "false alarms")
    for report in reports:
        found = report.as_json()
        first = min(found["predictions"], key=lambda one: one["seconds"], default=None)
        failed = min(found["failures"], key=lambda one: one["happened_seconds"], default=None)
        error = found["first_client_error_seconds"]
        before = None if first is None or error is None or first["seconds"] >= error else error - first["seconds"]
        table.add_row(
            escape(clean(report.recording)),
            "-" if first is None else f"{first['seconds']:+.1f} s {first['failure_type']}",
            "-" if failed is None else f"{failed['happened_seconds']:+.1f} s {failed['failure_type']}",
            "-" if error is None else f"{error:+.1f} s",
            "-" if before is None else f"{before:.1f} s",
            str(sum(one["outcome"] == "did_not_happen" for one in found["predictions"])),
        )
    console.print(table)
