"""docs/conditions.md describes every condition, and its thresholds are those of the code."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from tests.docs.pages import DOCS, REPOSITORY, code_spans, section, table_rows

from vllm_monitor.collectors import Recording, read_recording
from vllm_monitor.core import replay_ticks
from vllm_monitor.lifecycle_tracker.evidence_states import IDLE_SECONDS, state_of
from vllm_monitor.picture import LifeEvidence, evidence, heartbeat, judge
from vllm_monitor.records import CanaryObservation, Condition, LogObservation, ProcessObservation
from vllm_monitor.terminal.conditions import CALM

PAGE = DOCS / "conditions.md"
IN_THE_REPOSITORY = {"engine_sigstop_s0", "worker_sigkill_s0", "overload_s0"}
MEASURED = table_rows(section(PAGE, "On recordings of real failures"))[1:]
NOT_SEEN_FROM_AFAR = (ProcessObservation, LogObservation, CanaryObservation)


@pytest.mark.parametrize("condition", Condition)
def test_each_condition_is_described(condition: Condition) -> None:
    assert len(section(PAGE, condition.value).split()) > 10
    rows = {code_spans(row[0])[0]: row for row in table_rows(section(PAGE, "At a glance"))[1:]}
    told = {
        Condition.UNKNOWN: "the one before",
        Condition.STARTING: "[that of its phase](lifecycle.md#a-start)",
        Condition.STOPPED: "`shutting_down`, `cleanup`, `terminated`",
    }
    if condition not in told:
        told[condition] = f"`{state_of(LifeEvidence(condition=condition), None, 0.0)}`"
    assert rows[condition.value][3] == told[condition]


def test_thresholds() -> None:
    documented = {code_spans(name)[0]: float(value) for name, value, _ in table_rows(section(PAGE, "Thresholds"))[1:]}
    constants = {
        name: float(value)
        for module in (judge, heartbeat, evidence)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, (int, float))
    }
    assert documented == constants
    assert f"after {IDLE_SECONDS:g} s without work" in section(PAGE, "At a glance")


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: row[0].strip("`"))
def test_measured_times(row: list[str], request: pytest.FixtureRequest) -> None:
    name = row[0].strip("`")
    folder = REPOSITORY / "tests" / "data"
    if name not in IN_THE_REPOSITORY:
        folder = request.getfixturevalue("shared_dir") / "recordings"
    recording = read_recording(folder / f"{name}.jsonl.gz")
    injected_at = json.loads((folder / f"{name}.events.json").read_text(encoding="utf-8"))["inject_ts"]
    from_afar = replace(
        recording,
        observations=tuple(one for one in recording.observations if not isinstance(one, NOT_SEEN_FROM_AFAR)),
    )
    for written, seen in ((row[2], recording), (row[3], from_afar)):
        first = first_seen(seen, injected_at)
        claims = {condition: float(seconds) for condition, seconds in re.findall(r"`(\w+)` after (\d+) s", written)}
        if written == "nothing":
            assert first == {}
            continue
        assert claims
        for condition, seconds in claims.items():
            assert first.get(condition) == pytest.approx(seconds, abs=1.0), f"{condition} of {name}"


def first_seen(recording: Recording, injected_at: float) -> dict[str, float]:
    """Seconds from the injection to the first tick of each condition that is not calm."""
    first: dict[str, float] = {}
    for tick in replay_ticks(recording):
        snapshot = tick.snapshot
        if snapshot.timestamp >= injected_at - 1.0 and snapshot.condition not in CALM:
            first.setdefault(snapshot.condition.value, snapshot.timestamp - injected_at)
    return first
