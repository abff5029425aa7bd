"""``demo``, the README's first command."""

from __future__ import annotations

import json

import pytest
from tests.cli.running import run


@pytest.mark.slow
def test_the_demo_sees_its_faults_and_stores_what_it_saw() -> None:
    report = json.loads(run("demo", "--duration", "45", "--json").stdout)
    assert {fault["fault"]: fault["seen_as"] for fault in report["faults"]} == {
        "freeze": "stalled",
        "overload": "saturated",
        "crash": "engine_dead",
    }
    assert report["health_was_200_while_stalled"] is True
    assert report["samples_stored"] > 10_000
