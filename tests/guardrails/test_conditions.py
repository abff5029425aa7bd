"""Conditions: what is understood, what is refused and with which words, and what cannot be decided."""

from __future__ import annotations

from typing import Any

import cel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_monitor.errors import InvalidConditionError
from vllm_monitor.guardrails import METRICS, VARIABLES, CompiledCondition, make_context
from vllm_monitor.guardrails.context import example_context
from vllm_monitor.picture import Snapshot
from vllm_monitor.records import Condition, LifecycleState


def context(condition: Condition = Condition.OK, values: dict[str, float] | None = None, **facts: Any) -> cel.Context:
    snapshot = Snapshot(
        target="http://t",
        timestamp=100.0,
        state=LifecycleState.SERVING,
        condition=condition,
        reason="",
        condition_since=40.0,
        values=values or {},
    )
    return make_context(snapshot, facts)


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("requests_waiting > 20.0", {"requests_waiting": 21.0}, True),
        ("requests_waiting > 20", {"requests_waiting": 20.0}, False),
        ("requests_waiting > 20.0", {}, None),
        ("condition == 'ok' || requests_waiting > 20.0", {}, True),
        ("condition != 'ok' && requests_waiting > 20.0", {}, False),
        ("condition_seconds >= 60.0 && state == 'serving'", {}, True),
        ("has(labels.team) && labels.team == 'search'", {}, True),
        ("has(labels.tier)", {}, False),
        ("labels.tier == 'gold'", {}, None),
        ("predictions['kv_exhaustion'] > 0.5", {}, False),
        ("target.endsWith('t') && [1, 2].exists(x, x == crashes)", {}, False),
        ("host_pressed && startup_phase == '' && !startup_is_slow", {}, True),
    ],
)
def test_what_it_says(text: str, values: dict[str, float], expected: bool | None) -> None:
    facts: dict[str, Any] = {"labels": {"team": "search"}, "host_pressed": True}
    assert CompiledCondition(text).evaluate(context(values=values, **facts)) is expected


def test_while_nothing_is_known_a_condition_on_it_is_not_decided() -> None:
    assert CompiledCondition("condition == 'stalled'").evaluate(context(Condition.UNKNOWN)) is None


@pytest.mark.parametrize(
    ("text", "hold"), [("true for 30s", 30.0), ("true for 1.5 m", 90.0), ("true for 200ms", 0.2), ("true", 0.0)]
)
def test_how_long_it_must_hold(text: str, hold: float) -> None:
    assert CompiledCondition(text).hold_seconds == pytest.approx(hold)


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ("requests_waitng > 1.0", "'requests_waitng' .character 1 .*no such name", "did you mean requests_waiting"),
        ("requests_waiting >", "cannot be parsed at character 20", "<here>"),
        ("requests_waiting > 'a'", "mixes types", "requests_waiting is a real number"),
        ("condition == 'ok' && crashes > 'a'", "\"crashes > 'a'\" mixes types", "crashes is a whole number"),
        ("(condition == 'stalled' || (state > 3.0)) && true", "'state > 3.0' mixes types", "state is a text"),
        ("condition == 'staled'", "condition is never 'staled'", "did you mean stalled"),
        ("'srving' != state", "state is never 'srving'", "did you mean serving"),
        ("requests_waiting", "gives 1.0, not true or false", "compare it"),
        ("avg(requests_waiting) > 1.0", "no such function", "docs/guardrails.md"),
        ("__import__('os') == 1", "no such function", "docs/guardrails.md"),
        ("target.matches('(')", "cannot be evaluated", "docs/guardrails.md"),
        ("requests_waiting > 1.0 for 30x", "cannot be parsed at character 25", "for 30s"),
        ("", "empty", "for example"),
        (None, "empty or no text", "for example"),
        (lambda: True, "not a function", "as an expression"),
        ("(" * 60 + "true" + ")" * 60, "too long or too deep", "split it"),
        ("true || " * 400 + "true", "too long or too deep", "split it"),
        ("!" * 30 + "true", "too long or too deep", "split it"),
        ("[1].all(a, [1].all(b, [1].all(c, true)))", "walks too many lists", "at most 2"),
    ],
)
def test_what_is_refused(text: Any, words: str, hint: str) -> None:
    with pytest.raises(InvalidConditionError, match=words) as refused:
        CompiledCondition(text)
    assert hint in refused.value.hint
    assert isinstance(refused.value, ValueError)


@given(st.text(max_size=60) | st.text("()!&|<>=.'\"[]{}?:+-*/ \\abrequests_waiting0123", max_size=80))
def test_whatever_is_written_is_understood_or_refused(text: str) -> None:
    try:
        condition = CompiledCondition(text)
    except InvalidConditionError:
        return
    assert condition.evaluate(example_context()) in (True, False, None)


def test_every_metric_and_fact_is_a_name() -> None:
    for name in METRICS:
        assert CompiledCondition(f"{name} > 0.5").names == {name}
    assert set(METRICS) < set(VARIABLES)


def test_the_figures_that_it_speaks_of() -> None:
    condition = CompiledCondition("requests_waiting > 1.0 && condition == 'ok'")
    assert condition.figures({"requests_waiting": 2.0, "requests_running": 1.0}) == {"requests_waiting": 2.0}
