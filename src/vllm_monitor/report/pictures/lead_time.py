"""The lead-time histogram: how long before failures they were foretold."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vllm_monitor.report.foreseen import LeadTimes
from vllm_monitor.report.pictures.svg import (
    ACCENT,
    FAINT,
    INK,
    MUTED,
    WARNING,
    document,
    heading,
    line,
    rectangle,
    text,
)
from vllm_monitor.report.pictures.words import judged_since, number_of, seconds, subject_of, warning_of
from vllm_monitor.report.score_report import ScoreReport
from vllm_monitor.report.scores import FailureScore

__all__ = ["lead_time_picture"]

TITLE = "Lead time of predictions"
NOTHING_FAILED = "no failures yet"
NOTHING_LEFT = "nothing is left to tell by"
NOTHING_FORETOLD = "no failure was predicted yet"
_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 616.0, 116.0, 412.0
_MOST_BARS = 20
_MOST_LABELS = 10
_MOST_COUNT_STEPS = 5
_FEWEST_FOR_A_RANGE = 5  # failures; of fewer there are no tenths to speak of
_FEWEST = 3  # where the vertical axis ends at the least, so that a single failure does not fill the picture
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
_UNITS = ((3600, "hours"), (60, "minutes"), (1, "seconds"))


def lead_time_picture(report: ScoreReport) -> str:
    """A picture of 640 x 480 as SVG: failures by the time from their first prediction, the median marked."""
    overall = report.scores.overall
    title = f"{TITLE}: {subject_of(report)}"
    parts = heading(TITLE, subject_of(report), warning_of(report))
    parts.append(text(24, 80, _caption(report), fill=INK))
    if overall.lead_seconds is None:
        nothing = _nothing(overall)
        parts.append(line(_LEFT, _BOTTOM, _RIGHT, _BOTTOM, stroke=FAINT))
        parts.append(text((_LEFT + _RIGHT) / 2, 250, nothing, size=14, anchor="middle", fill=MUTED))
        return document(title, nothing, parts)
    parts += _histogram(overall.leads, overall.lead_seconds, WARNING if warning_of(report) else ACCENT)
    lead = overall.lead_seconds
    said = f"median {seconds(lead.median)}, from {seconds(lead.minimum)} to {seconds(max(overall.leads))}"
    return document(title, said, parts)


def _nothing(overall: FailureScore) -> str:
    if overall.failures_judged:
        return NOTHING_FORETOLD
    return NOTHING_LEFT if overall.failures else NOTHING_FAILED


def _caption(report: ScoreReport) -> str:
    overall = report.scores.overall
    if not overall.failures:
        return ""
    if not overall.failures_judged:
        return f"{number_of(overall.failures, 'failure', 'failures')}; the predictions of that time have expired"
    missed = overall.failures_judged - overall.failures_predicted
    since = judged_since(report)
    words = (
        f"{overall.failures_predicted:,} of {number_of(overall.failures_judged, 'failure', 'failures')}"
        f"{'' if since is None else f' since {since}'} predicted"
    )
    words += f", {missed:,} unannounced" if missed else ""
    lead = overall.lead_seconds
    if lead is None or lead.count < _FEWEST_FOR_A_RANGE:
        return words
    return f"{words}; shaded: from {seconds(lead.p10)} to {seconds(lead.p90)}, 80 % of them"


def _histogram(leads: Sequence[float], lead: LeadTimes, colour: str) -> list[str]:
    step = _step(max(leads))
    bars = max(1, math.ceil(max(leads) / step))
    counts = [0] * bars
    for one in leads:
        counts[min(bars - 1, int(one / step))] += 1
    width = (_RIGHT - _LEFT) / bars
    per_second = width / step
    height = _BOTTOM - _TOP
    top = _whole_top(max(_FEWEST, *counts))
    parts = []
    if lead.count >= _FEWEST_FOR_A_RANGE:
        left, right = _LEFT + lead.p10 * per_second, _LEFT + lead.p90 * per_second
        parts.append(rectangle(left, _TOP, right - left, height, fill=FAINT, opacity=0.14))
    parts += _axes(bars, step, width, top)
    for number, count in enumerate(counts):
        left, tall = _LEFT + width * number + 1, height * count / top
        parts.append(rectangle(left, _BOTTOM - tall, width - 2, tall, fill=colour, opacity=0.8))
    return parts + _median(lead.median, _LEFT + lead.median * per_second)


def _step(longest: float) -> float:
    """Seconds per bar: a number that people count in, so large that there are few bars."""
    for step in _STEPS:
        if longest / step <= _MOST_BARS:
            return float(step)
    return 86400.0 * math.ceil(longest / 86400.0 / _MOST_BARS)


def _whole_top(largest: int) -> int:
    """Where the vertical axis ends, in whole steps."""
    return math.ceil(largest / _count_step(largest)) * _count_step(largest)


def _count_step(largest: int) -> int:
    """1, 2 or 5 times a power of ten."""
    step = 1
    while largest > _MOST_COUNT_STEPS * step:
        step = step * 5 // 2 if str(step).startswith("2") else step * 2
    return step


def _axes(bars: int, step: float, width: float, top: int) -> list[str]:
    unit, unit_name = next((size, name) for size, name in _UNITS if step >= size)
    every = math.ceil(bars / _MOST_LABELS)
    parts = []
    for count in range(0, top + 1, _count_step(top)):
        y = _BOTTOM - (_BOTTOM - _TOP) * count / top
        parts += [line(_LEFT, y, _RIGHT, y), text(_LEFT - 8, y + 4, f"{count:,}", size=11, anchor="end", fill=MUTED)]
    for number in range(0, bars + 1, every):
        x = _LEFT + width * number
        parts += [
            line(x, _BOTTOM, x, _BOTTOM + 4, stroke=FAINT),
            text(x, _BOTTOM + 18, f"{step * number / unit:g}", size=11, anchor="middle", fill=MUTED),
        ]
    parts += [
        line(_LEFT, _BOTTOM, _RIGHT, _BOTTOM, stroke=FAINT),
        text(
            (_LEFT + _RIGHT) / 2, _BOTTOM + 44, f"{unit_name} from the first prediction to the failure", anchor="middle"
        ),
        text(28, (_TOP + _BOTTOM) / 2, "failures", anchor="middle", upwards=True),
    ]
    return parts


def _median(median: float, x: float) -> list[str]:
    anchor, shift = ("start", 6) if x < (_LEFT + _RIGHT) / 2 else ("end", -6)
    return [
        line(x, _TOP - 16, x, _BOTTOM, stroke=INK, width=1.5, dashes="4 3"),
        text(x + shift, _TOP - 6, f"median {seconds(median)}", anchor=anchor, bold=True),
    ]
