"""docs/guardrails.md shows names, guardrails and runbooks as they are."""

from __future__ import annotations

import pytest
from tests.docs.pages import DOCS

import guardrail_tables

PAGE = DOCS / "guardrails.md"


@pytest.mark.parametrize("part", [guardrail_tables.names, guardrail_tables.policies, guardrail_tables.runbooks])
def test_it_is_generated(part: object) -> None:
    assert callable(part)
    assert part() in PAGE.read_text(encoding="utf-8")
