"""One prediction for one coming failure, and never more in a day than a person reads."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from vllm_monitor.predictive_failure_detection.flood_guard import DAY_SECONDS, FloodGuard


def made(guard: FloodGuard, calls: str, *, step: float = 1.0, kind: str = "engine_stall") -> list[float]:
    """Times at which a prediction was made; ``x`` calls for one, ``.`` does not."""
    return [
        number * step for number, call in enumerate(calls) if guard.allows(kind, calls=call == "x", now=number * step)
    ]


def test_two_of_three_looks_must_call() -> None:
    assert made(FloodGuard(), "x..x..x") == []
    assert made(FloodGuard(), "x.x") == [2.0]
    assert made(FloodGuard(), "xx") == [], "one second is a burst"
    assert made(FloodGuard(), "xx", step=5.0) == [5.0]
    assert made(FloodGuard(), "xxx") == [2.0]
    assert made(FloodGuard(), "x" * 9, step=0.25) == [2.0]
    assert made(FloodGuard(), "x.......x", step=0.25) == [2.0]
    assert made(FloodGuard(), "x" + "." * 12 + "x", step=0.25) == []


def test_a_prediction_holds_the_next_one_of_its_type_down() -> None:
    guard = FloodGuard(hold_down_seconds=10.0)
    assert made(guard, "x" * 25) == [2.0, 12.0, 22.0]
    assert made(FloodGuard(hold_down_seconds=10.0), "xxx", kind="api_death") == [2.0]
    assert guard.allows("api_death", calls=True, now=25.0) is False, "a type of its own is debounced by itself"
    assert guard.allows("api_death", calls=True, now=27.0) is True


def test_the_budget_of_a_day_is_kept_and_what_it_holds_back_is_counted_once() -> None:
    guard = FloodGuard(hold_down_seconds=100.0, daily_budget=3)
    assert len(made(guard, "x" * 1_000)) == 3
    assert guard.suppressed == {"engine_stall": 7}
    assert guard.allows("engine_stall", calls=True, now=DAY_SECONDS + 2.0), "a day later it is free again"


def test_a_clock_that_was_set_back_does_not_silence_it() -> None:
    guard = FloodGuard(hold_down_seconds=100.0)
    assert [guard.allows("a", calls=True, now=now) for now in (1e6, 1e6 + 2)] == [False, True]
    assert [guard.allows("a", calls=True, now=now) for now in (5.0, 7.0)] == [False, True]


@given(st.lists(st.booleans(), max_size=300), st.integers(0, 299))
def test_a_restored_one_decides_alike(calls: list[bool], cut: int) -> None:
    whole, first, second = (FloodGuard(hold_down_seconds=7.0, daily_budget=5) for _ in range(3))
    for number, call in enumerate(calls):
        if number == cut:
            second.restore(first.state())
        part = first if number < cut else second
        expected = whole.allows("a", calls=call, now=float(number))
        assert part.allows("a", calls=call, now=float(number)) == expected
    assert Counter((second if len(calls) > cut else first).suppressed) == Counter(whole.suppressed)
