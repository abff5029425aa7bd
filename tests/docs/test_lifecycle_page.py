"""docs/lifecycle.md shows the transition table and the phases as they are."""

from __future__ import annotations

from tests.docs.pages import DOCS, code_spans, section, table_rows

import lifecycle_diagram
from vllm_monitor.lifecycle_tracker.evidence_states import PHASE_STATES

PAGE = DOCS / "lifecycle.md"


def test_the_picture_and_the_table_are_generated() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert lifecycle_diagram.diagram() in text
    assert lifecycle_diagram.table() in text


def test_phases() -> None:
    rows = table_rows(section(PAGE, "A start"))[1:]
    assert {code_spans(row[1])[0]: code_spans(row[2])[0] for row in rows} == {
        phase.value: state.value for phase, state in PHASE_STATES.items()
    }
