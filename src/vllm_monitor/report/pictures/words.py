"""What pictures and their captions say in words."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from vllm_monitor.report.pictures.svg import shortened
from vllm_monitor.report.score_report import ScoreReport
from vllm_monitor.report.scores import RESOLVED_FOR_CALIBRATION

__all__ = ["UNKNOWN", "judged_since", "number_of", "percent", "seconds", "subject_of", "warning_of"]

UNKNOWN = "-"
_TARGET_CHARACTERS = 36
_TYPE_CHARACTERS = 24


def subject_of(report: ScoreReport) -> str:
    """Which servers, types and days a report is of."""
    target = shortened(report.target, _TARGET_CHARACTERS) if report.target is not None else "all servers"
    kind = shortened(report.failure_type, _TYPE_CHARACTERS) if report.failure_type is not None else "all failure types"
    first, last = _day(report.watched_from), _day(report.watched_until)
    when = "" if first is None or last is None else f" · {first}" if first == last else f" · {first} to {last}"
    return f"{target} · {kind}{when}"


def judged_since(report: ScoreReport) -> str | None:
    """The day from which on recall and lead are told; ``None`` when that is the whole range."""
    since, first = report.rows_complete_since, report.watched_from
    return None if since is None or first is None or since <= first else _day(since)


def warning_of(report: ScoreReport) -> str:
    """What to beware of; empty when there is nothing."""
    overall = report.scores.overall
    return "" if overall.is_calibrated else f"uncalibrated: {overall.resolved} of {RESOLVED_FOR_CALIBRATION} resolved"


def number_of(count: int, one: str, many: str) -> str:
    """``1 failure``, ``2 failures``."""
    return f"{count:,} {one if count == 1 else many}"


def percent(ratio: float | None) -> str:
    """A share from 0 to 1 in whole percent."""
    return UNKNOWN if ratio is None else f"{100 * ratio:.0f} %"


def seconds(span: float | None) -> str:
    """A span of time in the unit that suits it, such as ``8.4 s``, ``84 s``, ``4.5 min`` or ``2.5 h``."""
    if span is None or not math.isfinite(span):
        return UNKNOWN
    if span < 9.95:
        return f"{span:.1f} s"
    if span < 119.5:
        return f"{span:.0f} s"
    if span < 7170:
        return f"{span / 60:.1f} min"
    return f"{span / 3600:.1f} h"


def _day(timestamp: float | None) -> str | None:
    if timestamp is None:
        return None
    try:
        return datetime.fromtimestamp(timestamp, UTC).date().isoformat()
    except (OverflowError, ValueError, OSError):  # a year that the calendar does not have
        return None
