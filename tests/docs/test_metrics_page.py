"""docs/metrics.md names every canonical name and every series of our own, with its meaning."""

from __future__ import annotations

import pytest
from tests.docs.pages import DOCS, code_spans, section, table_rows

from vllm_monitor.collectors import PROBE_METRICS
from vllm_monitor.picture import DERIVED, FAMILIES
from vllm_monitor.records import MetricType

PAGE = DOCS / "metrics.md"


def rows_under(heading: str) -> dict[str, list[str]]:
    return {row[0].strip("`"): row[1:] for row in table_rows(section(PAGE, heading))[1:]}


def test_canonical_names() -> None:
    computed = rows_under("Computed")
    rows = {name: row for name, row in rows_under("Canonical names").items() if name not in computed | {"name": []}}
    assert list(rows) == [family.name for family in FAMILIES]
    for family in FAMILIES:
        on_the_page, combined, meaning = rows[family.name]
        spans = code_spans(on_the_page)
        assert tuple(spans[: len(family.aliases)]) == family.aliases
        if family.label is not None:
            label, values = family.label
            assert spans[len(family.aliases)] == label
            assert tuple(span.rstrip(".") for span in spans[len(family.aliases) + 1 :]) == values
        assert {"sum": "summed"}.get(combined, combined) in family.kind.value
        assert meaning == family.help


@pytest.mark.parametrize(
    ("heading", "meanings"),
    [("Computed", DERIVED), ("Our own series", PROBE_METRICS)],
)
def test_other_names(heading: str, meanings: dict[str, str]) -> None:
    assert rows_under(heading) == {name: [meaning] for name, meaning in meanings.items()}


def test_types() -> None:
    assert {member.value for member in MetricType} <= set(code_spans(section(PAGE, "Types")))
