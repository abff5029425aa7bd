"""docs/happy_paths.md names the figures that are kept, and what is worse of each."""

from __future__ import annotations

from tests.docs.pages import DOCS, code_spans, section, table_rows

from vllm_monitor.happy_paths import PROFILED

PAGE = DOCS / "happy_paths.md"


def test_figures() -> None:
    words = {"more": 1, "less": -1, "neither": 0}
    rows = table_rows(section(PAGE, "Figures by load"))[1:]
    assert {code_spans(row[0])[0]: words[row[1]] for row in rows} == dict(PROFILED)
