"""The reliability diagram: what predictions said, and how often it came true."""

from __future__ import annotations

import math

from vllm_monitor.report.calibration import ReliabilityBin
from vllm_monitor.report.pictures.svg import (
    ACCENT,
    FAINT,
    GRID,
    INK,
    MUTED,
    PAPER,
    WARNING,
    circle,
    document,
    heading,
    line,
    rectangle,
    text,
)
from vllm_monitor.report.pictures.words import UNKNOWN, percent, subject_of, warning_of
from vllm_monitor.report.score_report import ScoreReport

__all__ = ["interval_of", "reliability_picture"]

TITLE = "Reliability of predictions"
NOTHING = "no resolved predictions yet"
_LEFT, _TOP, _SIDE = 74.0, 76.0, 276.0
_RIGHT, _BOTTOM = _LEFT + _SIDE, _TOP + _SIDE
_BARS_TOP, _BARS_BOTTOM = 378.0, 424.0
_PANEL, _PANEL_RIGHT = 392.0, 616.0
_LARGEST, _SMALLEST = 11.0, 3.5
_Z = 1.96  # of a normal distribution, 95 % lie within so many standard deviations


def reliability_picture(report: ScoreReport) -> str:
    """A picture of 640 x 480 as SVG: a point per tenth of probability, a histogram below, figures beside.

    A point is as large as its count, and grey bars are the 95 % interval of the share that happened, so that a tenth
    with two predictions does not look like a fact.
    """
    overall = report.scores.overall
    bins = overall.calibration.bins
    warning = warning_of(report)
    colour = WARNING if warning else ACCENT
    parts = [*heading(TITLE, subject_of(report), warning), *_frame()]
    largest = max((one.count for one in bins), default=0)
    for one in bins:
        parts += _point(one, largest, colour)
    parts += _histogram(bins, largest, colour)
    parts += _panel(report)
    if not bins:
        middle = (_LEFT + _RIGHT) / 2
        parts.append(rectangle(middle - 112, _TOP + 122, 224, 34, fill=PAPER))
        parts.append(text(middle, _TOP + 144, NOTHING, size=14, anchor="middle", fill=MUTED))
    said = "; ".join(
        f"of {one.count} that said {percent(one.mean_probability)}, {one.happened} happened" for one in bins
    )
    return document(f"{TITLE}: {subject_of(report)}", said or NOTHING, parts)


def interval_of(happened: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score: where the true share may lie, from 0 to 1.

    Reference: Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the American
    Statistical Association 22 (1927).
    """
    share = happened / count
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _x(probability: float) -> float:
    return _LEFT + _SIDE * probability


def _y(ratio: float) -> float:
    return _BOTTOM - _SIDE * ratio


def _frame() -> list[str]:
    parts = []
    for tick in range(0, 11, 2):
        at = tick / 10
        parts += [line(_x(at), _TOP, _x(at), _BOTTOM), line(_LEFT, _y(at), _RIGHT, _y(at))]
        parts.append(text(_LEFT - 8, _y(at) + 4, percent(at), size=11, anchor="end", fill=MUTED))
        parts.append(text(_x(at), _BARS_BOTTOM + 16, percent(at), size=11, anchor="middle", fill=MUTED))
    middle = (_TOP + _BOTTOM) / 2
    parts += [
        line(_LEFT, _BOTTOM, _RIGHT, _TOP, stroke=FAINT, width=1.5, dashes="5 4"),
        text(30, middle, "share that happened", anchor="middle", fill=INK, upwards=True),
        text((_LEFT + _RIGHT) / 2, _BARS_BOTTOM + 38, "predicted probability", anchor="middle", fill=INK),
        line(_LEFT, _BARS_BOTTOM, _RIGHT, _BARS_BOTTOM, stroke=FAINT),
    ]
    return parts


def _point(one: ReliabilityBin, largest: int, colour: str) -> list[str]:
    x = _x(one.mean_probability)
    low, high = interval_of(one.happened, one.count)
    tooltip = f"{one.count} predictions said {percent(one.mean_probability)}; {percent(one.happened_ratio)} happened"
    radius = max(_SMALLEST, _LARGEST * math.sqrt(one.count / largest))
    return [
        line(x, _y(low), x, _y(high), stroke=FAINT, width=2),
        circle(x, _y(one.happened_ratio), radius, fill=colour, tooltip=tooltip),
    ]


def _histogram(bins: tuple[ReliabilityBin, ...], largest: int, colour: str) -> list[str]:
    parts = [text(30, (_BARS_TOP + _BARS_BOTTOM) / 2 + 4, "count", size=11, fill=MUTED, anchor="middle", upwards=True)]
    for one in bins:
        height = (_BARS_BOTTOM - _BARS_TOP) * one.count / largest
        left, width = _x(one.low) + 1.5, _SIDE / 10 - 3
        parts.append(rectangle(left, _BARS_BOTTOM - height, width, height, fill=colour, opacity=0.55))
        label = f"{one.count:,}" if one.count < 10_000 else f"{one.count / 1000:.0f}k"
        parts.append(text(left + width / 2, _BARS_BOTTOM - height - 3, label, size=10, anchor="middle", fill=MUTED))
    return parts


def _panel(report: ScoreReport) -> list[str]:
    overall = report.scores.overall
    calibration = overall.calibration
    rows = [
        ("resolved predictions", f"n = {calibration.count:,}"),
        ("of these happened", percent(calibration.base_rate)),
        ("calibration error (ECE)", _three(calibration.ece)),
        ("Brier score", _three(calibration.brier)),
        ("skill over the base rate", _three(calibration.brier_skill)),
    ]
    parts = []
    for number, (label, value) in enumerate(rows):
        y = _TOP + 12 + 25 * number
        parts.append(text(_PANEL, y, label, fill=MUTED))
        parts.append(text(_PANEL_RIGHT, y, value, anchor="end", bold=True))
        parts.append(line(_PANEL, y + 8, _PANEL_RIGHT, y + 8, stroke=GRID))
    lines = [
        "How to read it",
        "On the dashed line predictions are",
        "as sure as they should be; below it",
        "they are too sure, above not enough.",
        "A larger point stands for more of them;",
        "its bar is the share's 95 % interval.",
    ]
    for number, words in enumerate(lines):
        parts.append(
            text(_PANEL, 226 + 17 * number, words, size=11.5, bold=number == 0, fill=INK if number == 0 else MUTED)
        )
    apart = [
        (overall.mitigated, "mitigated"),
        (overall.censored, "censored"),
        (overall.open, "open"),
        (overall.resolved - calibration.count, "without a probability"),
    ]
    said = [f"{count:,} {word}" for count, word in apart if count]
    if said:
        parts.append(text(_PANEL, 345, "Not in the picture", size=11.5, bold=True))
        parts += [text(_PANEL, 362 + 17 * number, words, size=11.5, fill=MUTED) for number, words in enumerate(said)]
    return parts


def _three(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3f}"
