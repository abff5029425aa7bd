"""What is usual at a load is learned while the server is well, and only then."""

from __future__ import annotations

import pytest
from tests.failures.pictures import snapshot

from vllm_monitor.core.target_failures import TargetFailures
from vllm_monitor.records import Condition

BUSY = {"requests_running": 4.0, "inter_token_latency_p50_seconds": 0.02}
FULL = {**BUSY, "kv_cache_usage_ratio": 0.99, "requests_waiting": 3.0}


def looks_learned(values: dict[str, float], condition: Condition = Condition.OK, *, pressed: bool = False) -> float:
    failures = TargetFailures("x", ttft_objective_seconds=2.0, inter_token_objective_seconds=0.2)
    for now in range(100):
        failures.observe(snapshot(float(now), values, condition), is_host_pressed=pressed, is_another=False)
    learned = failures.take_learned()
    assert failures.take_learned() is None, "nothing since"
    return 0.0 if learned is None else sum(looks for _, looks, _ in learned["levels"])


def test_it_learns_while_the_server_is_well() -> None:
    assert looks_learned(BUSY) == 100.0


def test_it_learns_nothing_while_it_is_not() -> None:
    assert looks_learned(BUSY, pressed=True) == 0.0
    assert looks_learned(BUSY, Condition.SATURATED) == 0.0
    assert looks_learned(FULL) == 5.0, "until the cache has been full for five seconds"
    assert looks_learned({}) == 0.0


def slowed(*, is_another: bool) -> list[str]:
    failures = TargetFailures("x", ttft_objective_seconds=2.0, inter_token_objective_seconds=0.2)
    for now in range(100):
        failures.observe(snapshot(float(now), BUSY), is_host_pressed=False, is_another=False)
    slow = {**BUSY, "inter_token_latency_p50_seconds": 0.05}
    found = []
    for now in range(100, 200):
        look = snapshot(float(now), slow)
        found += failures.observe(look, is_host_pressed=False, is_another=is_another and now == 100)
    return [one.failure_type for one in found]


def test_slower_than_usual_is_a_failure_unless_it_is_another_model() -> None:
    assert slowed(is_another=False) == ["silent_degradation"]
    assert slowed(is_another=True) == []


def test_what_was_learned_before_counts() -> None:
    before = TargetFailures("x", ttft_objective_seconds=2.0, inter_token_objective_seconds=0.2)
    for now in range(100):
        before.observe(snapshot(float(now), BUSY), is_host_pressed=False, is_another=False)
    after = TargetFailures("x", ttft_objective_seconds=2.0, inter_token_objective_seconds=0.2)
    after.restore(before.take_learned() or {})
    after.observe(
        snapshot(200.0, {**BUSY, "inter_token_latency_p50_seconds": 0.02}), is_host_pressed=False, is_another=False
    )
    assert "silent_degradation" not in after._watch.undecided()


@pytest.mark.parametrize(("objective", "expected"), [(0.2, []), (0.01, ["latency_breach"])])
def test_objectives_are_those_of_the_settings(objective: float, expected: list[str]) -> None:
    failures = TargetFailures("x", ttft_objective_seconds=2.0, inter_token_objective_seconds=objective)
    found = []
    for now in range(30):
        look = snapshot(float(now), {**BUSY, "inter_token_latency_p95_seconds": 0.1})
        found += failures.observe(look, is_host_pressed=False, is_another=False)
    assert [one.failure_type for one in found] == expected
