"""docs/failures.md says of every failure type when it has happened."""

from __future__ import annotations

from tests.docs.pages import DOCS, section, table_rows

from vllm_monitor.failures import DEFINITIONS


def test_definitions() -> None:
    rows = table_rows(section(DOCS / "failures.md", "Failures"))[1:]
    assert rows == [
        [f"`{one.failure_type}`", one.happened, f"{one.hold_seconds:g}", f"{one.clear_seconds:g}"]
        for one in DEFINITIONS
    ]
