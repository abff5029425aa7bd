"""An alert from the first doubt to the end; what a restart keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.guardrails.test_conditions import context

from vllm_monitor.errors import ConfigurationError, InvalidConditionError
from vllm_monitor.guardrails import Guardrails
from vllm_monitor.guardrails.alert_track import UNDECIDED_SECONDS, AlertTimes, AlertTrack
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import Alert, AlertState, Condition, GuardrailPolicy

T = "http://t"


def policy(name: str = "queue", condition: str = "requests_waiting > 20.0", **metadata: Any) -> GuardrailPolicy:
    return GuardrailPolicy(name, "Requests wait", condition, "limit_admission", "critical", metadata=metadata)


def track(hold: float = 10.0, keep: float = 5.0, cooldown: float = 0.0) -> AlertTrack:
    return AlertTrack(policy(), T, AlertTimes(hold, keep, cooldown))


def told(one: AlertTrack, story: Sequence[tuple[float, bool | None]]) -> list[tuple[float, AlertState]]:
    """When something was told, over a story of times and whether the condition was met."""
    found = [(now, one.advance(now, is_met, {})) for now, is_met in story]
    return [(now, alert.state) for now, alert in found if alert is not None]


def every_second(start: int, end: int, is_met: bool | None) -> list[tuple[float, bool | None]]:
    return [(float(now), is_met) for now in range(start, end)]


def test_it_fires_when_the_condition_has_held_and_goes_on_for_a_while() -> None:
    one = track()
    assert told(one, every_second(0, 10, True)) == []
    assert one.state.value == "pending"
    assert told(one, every_second(10, 30, True)) == [(10.0, AlertState.FIRING)]
    assert one.alert is not None
    assert (one.alert.timestamp, one.alert.fired_at) == (0.0, 10.0)
    assert told(one, every_second(30, 60, False)) == [(35.0, AlertState.RESOLVED)]
    assert one.state.value == "inactive"


def test_a_moment_is_no_alert_and_a_gap_in_it_no_end() -> None:
    one = track()
    assert told(one, [*every_second(0, 9, True), (9.0, False), *every_second(10, 19, True)]) == []
    assert told(one, [(20.0, True), (21.0, False), (24.0, True), (25.0, False), (29.0, False)]) == [
        (20.0, AlertState.FIRING)
    ]


def test_after_its_end_it_is_silent_for_its_cooldown() -> None:
    one = track(hold=0.0, keep=0.0, cooldown=100.0)
    story = [(0.0, True), (1.0, False), (2.0, True), (100.0, True), (101.0, True)]
    assert [now for now, _ in told(one, story)] == [0.0, 1.0, 101.0]


def test_what_cannot_be_decided_changes_nothing_for_a_while() -> None:
    one = track(hold=0.0)
    told(one, [(0.0, True)])
    assert told(one, [(now, None) for now in range(1, int(UNDECIDED_SECONDS))]) == []
    assert told(one, [(UNDECIDED_SECONDS + 1.0, None)]) == [(UNDECIDED_SECONDS + 1.0, AlertState.RESOLVED)]


def test_what_is_explained_by_another_does_not_begin_but_goes_on() -> None:
    one = track(hold=0.0)
    assert one.advance(0.0, True, {}, is_inhibited=True) is None
    assert one.advance(1.0, True, {}) is not None
    assert one.advance(2.0, True, {}, is_inhibited=True) is None
    assert one.state is AlertState.FIRING


@given(st.lists(st.tuples(st.floats(-50, 400), st.sampled_from([True, False, None])), max_size=60))
def test_whatever_happens_firing_and_resolved_alternate(steps: list[tuple[float, bool | None]]) -> None:
    one, now, story = track(hold=5.0, keep=3.0, cooldown=2.0), 1_000.0, []
    for seconds, is_met in steps:
        now += seconds
        story.append((now, is_met))
    states = [state for _, state in told(one, story)]
    assert states == [AlertState.FIRING, AlertState.RESOLVED] * (len(states) // 2) + states[:1] * (len(states) % 2)
    assert (one.alert is not None) is bool(len(states) % 2)


# --- policies and their alerts, stored -----------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PersistenceManager]:
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path / "store")) as opened:
        yield opened


def evaluate(guardrails: Guardrails, now: float, waiting: float | None) -> list[Alert]:
    values = {} if waiting is None else {"requests_waiting": waiting}
    return list(guardrails.evaluate(T, now, context(values=values), values))


def test_an_alert_that_fires_is_neither_forgotten_nor_fired_again(store: PersistenceManager) -> None:
    first = Guardrails(store, built_in=())
    first.register(policy())
    (fired,) = evaluate(first, 100.0, 50.0)
    assert fired.message == "Requests wait (requests_waiting 50)"
    assert fired.intervention == "limit_admission"
    store.flush_all()
    again = Guardrails(store, built_in=())
    assert again.firing() == []
    assert evaluate(again, 500.0, 50.0) == []
    (restored,) = again.firing(T)
    assert (restored.alert_id, restored.timestamp, restored.fired_at) == (fired.alert_id, 100.0, 100.0)
    evaluate(again, 600.0, 1.0)
    (resolved,) = evaluate(again, 620.0, 1.0)
    assert (resolved.state, resolved.alert_id) == (AlertState.RESOLVED, fired.alert_id)
    assert "no longer met (requests_waiting 1)" in resolved.metadata["resolved_because"]
    store.flush_all()
    assert [one.state for one in store.get_alerts()] == [AlertState.RESOLVED]


def test_policies_and_switches_survive(store: PersistenceManager) -> None:
    first = Guardrails(store)
    first.register(policy("mine"))
    first.enable("engine_stall", enabled=False)
    again = Guardrails(store)
    assert again.get("mine").policy == policy("mine")
    assert not again.get("engine_stall").policy.enabled
    assert again.get("engine_stall").is_built_in
    assert again.get("engine_dead").policy.enabled
    assert {one.name for one in store.load_guardrails()} == {"mine", "engine_stall"}
    again.enable("engine_stall")
    again.remove("mine")
    assert [one.policy.name for one in Guardrails(store).all()] == [one.policy.name for one in Guardrails().all()]


def test_one_of_the_package_may_be_replaced_and_comes_back(store: PersistenceManager) -> None:
    guardrails = Guardrails(store)
    guardrails.register(policy("engine_stall"))
    assert Guardrails(store).get("engine_stall").policy.condition == "requests_waiting > 20.0"
    guardrails.remove("engine_stall")
    assert guardrails.get("engine_stall").is_built_in
    with pytest.raises(ConfigurationError, match="comes with the package"):
        guardrails.remove("engine_stall")


def test_of_the_package_s_own_the_newest_condition_counts(store: PersistenceManager) -> None:
    """What is stored of them is which are off, not how they were a version ago."""
    store.save_guardrails([GuardrailPolicy("engine_stall", "old", "true", enabled=False, metadata={"built_in": True})])
    found = Guardrails(store).get("engine_stall").policy
    assert (found.condition, found.enabled) == ("condition == 'stalled' for 2s", False)


def test_a_stored_condition_that_cannot_be_understood_stops_no_other(store: PersistenceManager) -> None:
    store.save_guardrails([policy("bad", "no_such_thing > 1"), policy("good")])
    guardrails = Guardrails(store, built_in=())
    assert "no_such_thing" in guardrails.get("bad").problem
    assert [alert.name for alert in evaluate(guardrails, 1.0, 50.0)] == ["good"]


def test_switching_off_ends_what_fires(store: PersistenceManager) -> None:
    guardrails = Guardrails(store, built_in=())
    guardrails.register(policy())
    evaluate(guardrails, 1.0, 50.0)
    guardrails.enable("queue", enabled=False)
    (resolved,) = evaluate(guardrails, 2.0, 50.0)
    assert (resolved.state, resolved.metadata["resolved_because"]) == (
        AlertState.RESOLVED,
        "the guardrail was switched off",
    )
    assert evaluate(guardrails, 3.0, 50.0) == []


def test_what_somebody_else_stored_is_taken_up(store: PersistenceManager) -> None:
    guardrails = Guardrails(store, built_in=())
    evaluate(guardrails, 1.0, 50.0)
    Guardrails(store, built_in=()).register(policy("new"))
    guardrails.load()
    assert [alert.name for alert in evaluate(guardrails, 2.0, 50.0)] == ["new"]


def test_what_explains_the_others_is_said_alone() -> None:
    guardrails = Guardrails(built_in=[policy("cause", "condition == 'starved'"), policy(inhibited_by=["cause"])])
    values = {"requests_waiting": 50.0}
    found = guardrails.evaluate(T, 1.0, context(Condition.STARVED, values), values)
    assert [alert.name for alert in found] == ["cause"]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (GuardrailPolicy("", "", "true"), ConfigurationError),
        (GuardrailPolicy("a", "", "true", severity="loud"), ConfigurationError),
        (GuardrailPolicy("a", "", "bogus > 1"), InvalidConditionError),
    ],
)
def test_nonsense_is_refused_and_changes_nothing(
    store: PersistenceManager, given: GuardrailPolicy, error: type[Exception]
) -> None:
    guardrails = Guardrails(store, built_in=())
    with pytest.raises(error):
        guardrails.register(given)
    assert guardrails.all() == []
    assert store.load_guardrails() == []
