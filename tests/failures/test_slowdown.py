"""Slower than usual at the load of the same time."""

from __future__ import annotations

import pytest

from vllm_monitor.failures import Slowdown


def look(running: float, seconds: float) -> dict[str, float]:
    return {"requests_running": running, "inter_token_latency_p50_seconds": seconds}


def taught() -> Slowdown:
    slowdown = Slowdown()
    for start, running, seconds in ((0, 4.0, 0.02), (1_000, 32.0, 0.08)):
        for now in range(start, start + 200):
            slowdown.observe(float(now), look(running, seconds))
            slowdown.learn()
    return slowdown


def test_a_load_is_that_of_the_window_in_which_the_speed_was_measured() -> None:
    slowdown = taught()
    for now in range(2_000, 2_060):
        slowdown.observe(float(now), look(32.0, 0.08))
    after = [slowdown.observe(float(now), look(4.0, 0.08)) for now in range(2_060, 2_100)]
    assert all(ratio is None or ratio < 1.5 for ratio in after), "the busy half minute still counts on both sides"
    for now in range(2_100, 2_200):
        ratio = slowdown.observe(float(now), look(4.0, 0.08))
    assert ratio == pytest.approx(4.0)


def test_a_slowdown_does_not_become_what_is_usual() -> None:
    slowdown = taught()
    for now in range(2_000, 3_000):
        ratio = slowdown.observe(float(now), look(4.0, 0.04))
        slowdown.learn()
    assert ratio == pytest.approx(2.0)


def test_another_model_begins_anew_and_so_does_a_clock_that_was_set_back() -> None:
    slowdown = taught()
    assert slowdown.observe(100.0, look(4.0, 0.02)) == pytest.approx(1.0)
    slowdown.forget()
    assert slowdown.observe(101.0, look(4.0, 0.02)) is None
    assert slowdown.observe(102.0, {}) is None
    assert not Slowdown().learn()
