"""When failures have happened: over recordings of a real server, and case by case."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_monitor.collectors import read_recording
from vllm_monitor.core.replay import replay_ticks
from vllm_monitor.failures import DEFINITIONS, Episode, Facts, FailureWatch, LoadBaseline
from vllm_monitor.picture import Snapshot
from vllm_monitor.records import FAILURE_TYPES, Condition, LifecycleState

EXPECTED = {
    "engine_sigstop_s0": "engine_stall",
    "worker_sigstop_s0": "engine_stall",
    "engine_sigkill_s0": "engine_death",
    "worker_sigkill_s0": "worker_death",
    "api_sigstop_s0": "api_frozen",
    "kv_exhaust_s0": "kv_exhaustion",
    "overload_s0": "queue_saturation",
    "startup_failure_s0": "startup_failure",
}


def failures_in(path: Path) -> list[Episode]:
    watch, found = FailureWatch("x"), []
    for tick in replay_ticks(read_recording(path)):
        found += watch.observe(tick.snapshot, Facts())
    return found


@pytest.mark.parametrize("name", EXPECTED)
def test_a_real_failure_has_happened(name: str, shared_dir: Path) -> None:
    happened = {one.failure_type for one in failures_in(shared_dir / "recordings" / f"{name}.jsonl.gz")}
    assert EXPECTED[name] in happened
    if name not in ("kv_exhaust_s0", "overload_s0"):  # these have several
        assert happened == {EXPECTED[name]}


@pytest.mark.parametrize("name", ["healthy_s0", "healthy_s1", "cpu_starve_s0", "bad_requests_s0", "client_abort_s0"])
def test_where_nothing_fails_nothing_has_happened(name: str, shared_dir: Path) -> None:
    assert failures_in(shared_dir / "recordings" / f"{name}.jsonl.gz") == []


def test_every_type_has_one_definition() -> None:
    assert tuple(one.failure_type for one in DEFINITIONS) == FAILURE_TYPES


def snapshot(now: float, values: dict[str, float], condition: Condition = Condition.OK) -> Snapshot:
    return Snapshot(
        target="x",
        timestamp=now,
        state=LifecycleState.PROCESSING_REQUESTS,
        condition=condition,
        reason="",
        condition_since=0.0,
        values=values,
    )


FULL = {"kv_cache_usage_ratio": 0.99, "requests_waiting": 3.0}
CALM = {"kv_cache_usage_ratio": 0.4, "requests_waiting": 0.0}


def test_it_began_with_the_first_of_them_and_is_over_after_a_while_without() -> None:
    watch = FailureWatch("x")
    seen = [watch.observe(snapshot(float(now), FULL), Facts()) for now in range(7)]
    assert [len(one) for one in seen] == [0, 0, 0, 0, 0, 1, 0]
    (happened,) = seen[5]
    assert (happened.failure_type, happened.began_at, happened.happened_at) == ("kv_exhaustion", 0.0, 5.0)
    assert watch.current() == [happened]
    later = [watch.observe(snapshot(float(now), CALM), Facts()) for now in range(7, 20)]
    (over,) = [one for several in later for one in several]
    assert over.ended_at == 6.0
    assert watch.current() == []


def test_what_is_not_known_decides_nothing_for_a_while() -> None:
    watch = FailureWatch("x")
    for now in range(6):
        watch.observe(snapshot(float(now), FULL), Facts())
    assert watch.current()
    assert [watch.observe(snapshot(float(now), {}), Facts()) for now in range(6, 300)] == [[]] * 294
    assert watch.observe(snapshot(400.0, {}), Facts())[0].ended_at == 5.0


@pytest.mark.parametrize("condition", [Condition.PAUSED, Condition.STOPPED, Condition.STARTING])
def test_what_somebody_asked_for_is_no_failure(condition: Condition) -> None:
    watch = FailureWatch("x")
    for now in range(100):
        assert watch.observe(snapshot(float(now), FULL, condition), Facts()) == []


def test_slower_at_equal_load_is_found_and_busier_is_not() -> None:
    baseline = LoadBaseline()
    for _ in range(100):
        baseline.learn(4.0, 0.02)
        baseline.learn(32.0, 0.08)
    assert baseline.ratio(5.0, 0.02) == pytest.approx(1.0)
    assert baseline.ratio(33.0, 0.08) == pytest.approx(1.0), "more to do is slower, and nothing is wrong"
    assert baseline.ratio(4.0, 0.04) == pytest.approx(2.0)
    assert baseline.ratio(9.0, 0.04) is None, "a load that was not seen"
    again = LoadBaseline()
    again.restore(baseline.state())
    assert again.ratio(4.0, 0.04) == baseline.ratio(4.0, 0.04)
