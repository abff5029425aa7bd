"""Servers that look odd and are well: nothing is predicted of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from vllm_monitor.core import TargetPipeline, Tick
from vllm_monitor.lifecycle_tracker import LifecycleTracker
from vllm_monitor.predictive_failure_detection import PredictiveFailureDetector
from vllm_monitor.records import HealthObservation, PageObservation
from vllm_monitor.simulator import EngineSettings, Fault, FaultKind, LoadSettings, ServerSettings, Simulator

TARGET = "http://a"
Change = Callable[[dict[str, list[int]], np.ndarray, float], None]


def watched(
    simulator: Simulator,
    seconds: float,
    *,
    step: float = 1.0,
    change: Change | None = None,
    sees: Callable[[float], bool] = lambda _: True,
) -> list[Tick]:
    """Follow a simulated server, with its pages changed, or not seen at times."""
    pipeline = TargetPipeline(TARGET, tracker=LifecycleTracker(), predictor=PredictiveFailureDetector())
    ticks: list[Tick] = []
    began = simulator.unix_time
    for _ in range(int(seconds / step)):
        simulator.advance(step)
        at, status = simulator.unix_time, simulator.health_status()
        found: list[HealthObservation | PageObservation] = []
        if status is not None:
            found.append(HealthObservation(target=TARGET, timestamp=at, latency_seconds=0.001, status=status))
        if status == 200 and sees(at - began):
            layout, values = simulator.scrape()
            if change is not None:
                columns: dict[str, list[int]] = {}
                for place, series in enumerate(layout.series):
                    columns.setdefault(series.name, []).append(place)
                change(columns, np.frombuffer(values, dtype=np.float64), at - began)
            found.append(
                PageObservation(
                    target=TARGET, timestamp=at, latency_seconds=0.002, layout=layout, values=values, status=200
                )
            )
        ticks.append(pipeline.step(at + 0.01, found))
    return ticks


def predicted(ticks: list[Tick]) -> list[tuple[str, list[str]]]:
    return [(one.failure_type, one.contributing_factors) for tick in ticks for one in tick.predictions]


@pytest.mark.parametrize(("level", "running"), [(0.5, 2.0), (0.75, 20.0), (0.9, 4.0)])
def test_a_cache_that_is_held_full_by_long_requests(level: float, running: float) -> None:
    def hold(columns: dict[str, list[int]], values: np.ndarray, at: float) -> None:
        values[columns["vllm:kv_cache_usage_perc"]] = level + 0.01 * math.sin(at / 50.0)
        values[columns["vllm:num_requests_running"]] += running

    server = ServerSettings(load=LoadSettings(requests_per_second=3.0, mean_output_tokens=120.0))
    assert predicted(watched(Simulator(server, seed=407), 600.0, change=hold)) == []


def test_a_small_cache_that_is_used() -> None:
    server = ServerSettings(
        engine=EngineSettings(num_blocks=260, max_model_len=2048),
        load=LoadSettings(
            requests_per_second=1.5, mean_prompt_tokens=300.0, mean_output_tokens=150.0, length_sigma=0.3
        ),
    )
    assert predicted(watched(Simulator(server, seed=411), 1_200.0, step=2.0)) == []


def test_a_server_that_has_died_twice_and_is_well_again() -> None:
    crashes = [Fault(FaultKind.CRASH, 200.0 * number, 8.0) for number in (1, 2, 3, 4)]
    ticks = watched(Simulator(ServerSettings(), seed=431, faults=crashes), 1_000.0)
    assert sum(len(tick.failures) for tick in ticks) >= 4
    assert predicted(ticks) == []


@pytest.mark.parametrize("gap", [6.0, 12.0])
def test_pages_that_do_not_come_are_no_stutter_of_the_engine(gap: float) -> None:
    ticks = watched(Simulator(ServerSettings(), seed=421), 500.0, sees=lambda at: at % 100.0 > gap)
    assert predicted(ticks) == []


@pytest.mark.parametrize("name", ["vllm:num_requests_waiting", "process_resident_memory_bytes"])
@pytest.mark.parametrize("wild", [1e308, -1e308, math.inf, math.nan])
def test_a_figure_that_cannot_be_is_not_known_and_harms_nothing(name: str, wild: float) -> None:
    def spoil(columns: dict[str, list[int]], values: np.ndarray, at: float) -> None:
        if 20.0 < at < 40.0:
            values[columns[name]] = wild

    assert predicted(watched(Simulator(ServerSettings(), seed=5), 80.0, change=spoil)) == []


@pytest.mark.parametrize("wild", [1e155, 1e308, -1e200])
def test_a_figure_that_cannot_be_does_not_silence_what_comes_after_it(wild: float) -> None:
    def spoil(columns: dict[str, list[int]], values: np.ndarray, at: float) -> None:
        if 20.0 < at < 23.0:
            values[columns["vllm:kv_cache_usage_perc"]] = wild

    overload = [Fault(FaultKind.OVERLOAD, 120.0, 60.0, rate_multiplier=20.0)]
    ticks = watched(Simulator(ServerSettings(), seed=3, faults=overload), 200.0, change=spoil)
    assert "queue_saturation" in [kind for kind, _ in predicted(ticks)]
