"""The pictures are XML whatever stands in them, fit into their frame, and say what the score says."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report.histories import CENSORED, DAY, DID_NOT_HAPPEN, HAPPENED, MITIGATED, failed, predicted, predictions

from vllm_monitor.failures import Episode
from vllm_monitor.records import FailurePrediction
from vllm_monitor.report import ScoreReport, counts_of, lead_time_picture, reliability_picture, score_predictions
from vllm_monitor.report.pictures.reliability import interval_of

SVG = "{http://www.w3.org/2000/svg}"
PICTURES = (reliability_picture, lead_time_picture)
START = 1_790_000_000.0


def report_of(
    made: list[FailurePrediction],
    failures: list[Episode],
    *,
    target: str | None = None,
    failure_type: str | None = None,
    rows_complete_since: float | None = None,
) -> ScoreReport:
    scores = score_predictions(
        made,
        failures,
        counts_of(made),
        start=-math.inf,
        end=math.inf,
        watched_seconds=DAY,
        rows_complete_since=rows_complete_since,
    )
    return ScoreReport(
        generated_at=START,
        target=target,
        failure_type=failure_type,
        start=None,
        end=None,
        watched_from=START if made else None,
        watched_until=START + 5 * DAY if made else None,
        rows_complete_since=rows_complete_since,
        scores=scores,
    )


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg)  # noqa: S314  (it is what we have just written)


def words(svg: str) -> list[str]:
    return ["".join(one.itertext()) for one in parsed(svg).iter(f"{SVG}text")]


def parts(svg: str, kind: str) -> list[dict[str, str]]:
    return [dict(one.attrib) for one in parsed(svg).iter(f"{SVG}{kind}")]


def history(count: int) -> tuple[list[FailurePrediction], list[Episode]]:
    """One prediction an hour; three of four come true after 60 s and more."""
    times = [START + 3600.0 * number for number in range(count)]
    made = [predicted(at, HAPPENED if number % 4 else DID_NOT_HAPPEN, 0.75) for number, at in enumerate(times)]
    return made, [failed(at + 60.0 + number) for number, at in enumerate(times) if number % 4]


@given(
    made=predictions(),
    target=st.text() | st.just("</text><script>alert('\"&')</script>") | st.none(),
    failure_type=st.text() | st.none(),
    failures=st.lists(st.floats(0.0, 10 * DAY), max_size=10),
)
def test_it_is_xml_whatever_stands_in_it(
    made: list[FailurePrediction], target: str | None, failure_type: str | None, failures: list[float]
) -> None:
    report = report_of(made, [failed(one) for one in failures], target=target, failure_type=failure_type)
    for draw in PICTURES:
        svg = draw(report)
        svg.encode("utf-8")
        root = parsed(svg)
        assert root.get("viewBox") == "0 0 640 480"
        kinds = {one.tag.removeprefix(SVG) for one in root.iter()}
        assert kinds <= {"svg", "title", "desc", "rect", "line", "circle", "text"}
        for one in root.iter():
            for name in ("x", "x1", "x2", "cx"):
                assert 0.0 <= float(one.get(name, "0")) <= 640.0
            for name in ("y", "y1", "y2", "cy"):
                assert 0.0 <= float(one.get(name, "0")) <= 480.0


@pytest.mark.parametrize("name", ["\x00\x1b[31m\ud800", "\u202egpj.exe", "]]>", "a" * 5_000, "\ufffe\uffff"])
def test_names_that_no_xml_can_hold(name: str) -> None:
    for draw in PICTURES:
        (subject, *_) = [one for one in words(draw(report_of([], [], target=name))) if "failure types" in one]
        assert "\u202e" not in subject
        assert len(subject) < 90


def test_it_needs_nothing_from_outside() -> None:
    for draw in PICTURES:
        svg = draw(report_of(*history(30)))
        assert re.findall(r"https?://[^\s\"'<)]+", svg) == ["http://www.w3.org/2000/svg"]
        assert not re.search(r"url\(|href|@import|<script|<image|<style", svg)


def test_reliability_says_what_the_score_says() -> None:
    svg = reliability_picture(report_of(*history(40)))
    said = words(svg)
    assert "n = 40" in said
    assert not any("uncalibrated" in one for one in said)
    (point,) = parts(svg, "circle")
    frame = [one for one in parts(svg, "line") if one.get("stroke-dasharray")]
    (diagonal,) = frame
    left, right = float(diagonal["x1"]), float(diagonal["x2"])
    bottom, top = float(diagonal["y1"]), float(diagonal["y2"])
    assert float(point["cx"]) == pytest.approx(left + 0.75 * (right - left), abs=0.1)
    assert float(point["cy"]) == pytest.approx(bottom + 0.75 * (top - bottom), abs=0.1)  # on the diagonal


def test_larger_points_are_of_more_predictions() -> None:
    made = [predicted(number, HAPPENED, 0.1 if number < 5 else 0.9) for number in range(25)]
    few, many = (float(one["r"]) for one in parts(reliability_picture(report_of(made, [])), "circle"))
    assert many == pytest.approx(2 * few, abs=0.1)  # their areas are as 1 to 4


def test_what_is_apart_is_said() -> None:
    made = [*history(20)[0], predicted(1.0, MITIGATED), predicted(2.0, CENSORED), predicted(3.0, HAPPENED, math.nan)]
    said = words(reliability_picture(report_of(made, [])))
    assert {"1 mitigated", "1 censored", "1 without a probability"} <= set(said)
    assert "n = 20" in said


def test_an_uncalibrated_score_is_marked() -> None:
    for draw in PICTURES:
        assert "uncalibrated: 19 of 20 resolved" in words(draw(report_of(*history(19))))
        assert not any("uncalibrated" in one for one in words(draw(report_of(*history(20)))))


def test_lead_times() -> None:
    made, failures = history(40)
    svg = lead_time_picture(report_of(made, [*failures, failed(START - 10.0)]))
    said = words(svg)
    assert any(one.startswith("30 of 31 failures predicted, 1 unannounced") for one in said)
    assert "median 80 s" in said
    assert any("80 % of them" in one for one in said)
    assert "seconds from the first prediction to the failure" in said
    bars = [one for one in parts(svg, "rect") if one["fill-opacity"] == "0.8" and float(one["height"]) > 0]
    axis = float(next(one for one in parts(svg, "line") if one.get("stroke-dasharray"))["y2"])
    assert all(float(one["y"]) + float(one["height"]) == pytest.approx(axis, abs=0.2) for one in bars)


@pytest.mark.parametrize(
    ("lead", "unit", "last"),
    [(0.4, "seconds", "1"), (45.0, "seconds", "45"), (900.0, "minutes", "14"), (9e4, "hours", "24")],
)
def test_units_of_lead_times(lead: float, unit: str, last: str) -> None:
    svg = lead_time_picture(report_of([predicted(1000.0, horizon=1e6)], [failed(1000.0 + lead)]))
    said = words(svg)
    assert f"{unit} from the first prediction to the failure" in said
    assert last in said


def test_a_few_lead_times_have_no_range() -> None:
    assert not any("shaded" in one for one in words(lead_time_picture(report_of(*history(5)))))


def test_nothing_yet() -> None:
    assert "no resolved predictions yet" in words(reliability_picture(report_of([], [])))
    assert "no failures yet" in words(lead_time_picture(report_of([], [])))
    assert "no failure was predicted yet" in words(lead_time_picture(report_of([], [failed(1.0)])))


def test_expired_predictions_are_said() -> None:
    made, failures = history(10)
    report = report_of(made, failures, rows_complete_since=START + 2 * DAY)
    assert any(
        "7 failures; the predictions of that time have expired" in one for one in words(lead_time_picture(report))
    )
    assert "nothing is left to tell by" in words(lead_time_picture(report))
    part = report_of(made, [*failures, failed(START + 90_000.0)], rows_complete_since=START + 3600.0 * 5)
    assert "4 of 5 failures since 2026-09-21 predicted, 1 unannounced" in words(lead_time_picture(part))


@given(count=st.integers(1, 10_000), share=st.floats(0.0, 1.0))
def test_interval_of_a_share(count: int, share: float) -> None:
    happened = round(count * share)
    low, high = interval_of(happened, count)
    assert 0.0 <= low <= happened / count + 1e-12
    assert happened / count - 1e-12 <= high <= 1.0
    assert high - low > 0.9 / math.sqrt(count + 4) or happened in (0, count) or not 0.2 < happened / count < 0.8


def test_interval_of_a_published_example() -> None:
    """Newcombe, Statistics in Medicine 17 (1998): 81 of 263 is 0.2553 to 0.3662."""
    assert interval_of(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
