"""The heartbeat by itself, where the conditions do not show it: several engines, gaps."""

from __future__ import annotations

import numpy as np

from vllm_monitor.picture.columns import EngineColumns
from vllm_monitor.picture.heartbeat import Heartbeat


def columns(progress: list[float], in_flight: list[float]) -> EngineColumns:
    return EngineColumns(np.array(progress), np.array(in_flight))


def test_one_stuck_engine_among_many_is_named() -> None:
    heartbeat = Heartbeat()
    for second in range(20):
        heartbeat.see_page(float(second), ("0", "1"), columns([second * 10.0, 70.0], [3.0, 2.0]), None)
    pulse = heartbeat.pulse()
    assert pulse.stuck_engine == "1"
    assert pulse.stuck_seconds == 19.0
    assert pulse.progress_age_seconds == 0.0
    assert "engine 1 is stuck" in pulse.waiting_evidence()


def test_an_engine_without_work_is_not_stuck() -> None:
    heartbeat = Heartbeat()
    for second in range(20):
        heartbeat.see_page(float(second), ("0", "1"), columns([second * 10.0, 70.0], [3.0, 0.0]), None)
    assert heartbeat.pulse().stuck_seconds == 0.0


def test_long_prefills_make_it_patient() -> None:
    heartbeat = Heartbeat()
    progress = 0.0
    for second in range(60):
        progress += 10.0 if second % 4 == 0 else 0.0
        heartbeat.see_page(float(second), ("0",), columns([progress], [1.0]), None)
    assert 3.5 <= heartbeat.pulse().longest_gap_seconds <= 4.0


def test_other_engine_labels_begin_anew() -> None:
    heartbeat = Heartbeat()
    for second in range(10):
        heartbeat.see_page(float(second), ("0",), columns([5.0], [1.0]), None)
    heartbeat.see_page(10.0, ("0", "1"), columns([5.0, 0.0], [1.0, 0.0]), None)
    assert heartbeat.pulse().stuck_seconds == 0.0
