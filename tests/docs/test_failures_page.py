"""docs/failures.md says when each failure type has happened, what is recorded, and what becomes of predictions."""

from __future__ import annotations

from tests.docs.pages import DOCS, code_spans, section, table_rows
from tests.prediction.made_up import failure, prediction

from vllm_monitor.core import TargetPipeline
from vllm_monitor.failures import DEFINITIONS, event_of
from vllm_monitor.lifecycle_tracker import LifecycleTracker
from vllm_monitor.predictive_failure_detection.settlement import LONGEST_HOLE_SECONDS, MOST_UNSEEN_RATIO
from vllm_monitor.records import FailurePrediction, PredictionOutcome

PAGE = DOCS / "failures.md"


def test_definitions() -> None:
    rows = table_rows(section(PAGE, "Definitions"))[1:]
    assert rows == [
        [f"`{one.failure_type}`", one.happened, f"{one.hold_seconds:g}", f"{one.clear_seconds:g}"]
        for one in DEFINITIONS
    ]


class Once:
    def observe(self, *_: object) -> list[FailurePrediction]:
        return [prediction(at=100.0, horizon_seconds=1.0)]

    def note_resolved(self, *_: object) -> None:
        pass

    note_action = note_resolved


def test_events() -> None:
    pipeline = TargetPipeline("x", tracker=LifecycleTracker(resume=False), predictor=Once())
    events = [event_of(failure(1.0)), event_of(failure(1.0, ended_at=2.0))]
    events += [event for now in (100.0, 101.0) for event in pipeline.step(now, []).events]
    told = {event.event_type: event for event in events}
    rows = {code_spans(row[0])[0]: row for row in table_rows(section(PAGE, "What the watch records"))[1:]}
    assert rows.keys() == told.keys()
    for name, (_, severity, _, data) in rows.items():
        assert severity == told[name].severity.value
        if name != "failure_over":  # "the same"
            assert code_spans(data) == list(told[name].data)


def test_outcomes() -> None:
    text = section(PAGE, "What becomes of predictions")
    assert {*(code_spans(row[0])[0] for row in table_rows(text)[1:]), "open"} == set(PredictionOutcome)
    assert (MOST_UNSEEN_RATIO, LONGEST_HOLE_SECONDS) == (0.1, 30.0)
    assert "more than a tenth of it, or for more than 30 s on end" in text
