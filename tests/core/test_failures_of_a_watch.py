"""A live watch records failures, settles what was left open, and remembers what is usual, over a restart."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from tests.core.recordings import DATA
from tests.prediction.made_up import prediction
from tests.waiting import wait_until

from vllm_monitor import MonitorConfig, VLLMMonitor
from vllm_monitor.collectors import read_recording
from vllm_monitor.core import TargetPipeline
from vllm_monitor.core.learned_loads import LearnedLoads
from vllm_monitor.failures import FAILURE_HAPPENED, FAILURE_OVER
from vllm_monitor.lifecycle_tracker import LifecycleTracker
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import FailurePrediction, PredictionOutcome, ProcessObservation
from vllm_monitor.simulator import SimulatorProcess

FAST = MonitorConfig(interval_seconds=0.2)


def of(url: str, name: str, at: float, horizon_seconds: float, failure_type: str) -> FailurePrediction:

    return replace(prediction(name, at, horizon_seconds, failure_type), target=url)


def test_a_death_is_recorded_once_and_predictions_are_settled(tmp_path: Path) -> None:
    config = PersistenceConfig(storage_dir=tmp_path)
    with SimulatorProcess(seed=1, rate=5.0) as simulator:
        url = simulator.url
        with PersistenceManager(config) as before:
            before.save_prediction(of(url, "overdue", time.time() - 500.0, 300.0, "engine_stall"))
            before.save_prediction(of(url, "right", time.time(), 300.0, "api_death"))
        with VLLMMonitor(FAST, persistence_config=config) as monitor:
            assert monitor.add_target(url) == url
            store = monitor.persistence_manager
            assert store is not None
            wait_until(lambda: store.get_predictions(outcome="censored"), "the overdue one is settled")
            wait_until(lambda: condition_of(monitor, url) not in ("", "unknown"), "it is seen")
            os.kill(simulator.pid, signal.SIGKILL)
            wait_until(lambda: store.get_predictions(outcome="happened"), "the other one has come true")
        with VLLMMonitor(FAST, persistence_config=config) as monitor:
            ticks: list[str] = []
            monitor.add_listener(lambda tick: ticks.append(tick.snapshot.condition.value))
            monitor.add_target(url)
            wait_until(lambda: ticks.count("unreachable") >= 3, "it is still gone")
    with PersistenceManager(config) as after:
        assert [one.data["failure_type"] for one in after.get_events(FAILURE_HAPPENED, target=url)] == ["api_death"]
        assert after.get_events(FAILURE_OVER, target=url) == [], "it is still dead"
        assert {one.prediction_id: one.outcome for one in after.get_predictions()} == {
            "overdue": PredictionOutcome.CENSORED,
            "right": PredictionOutcome.HAPPENED,
        }


def condition_of(monitor: VLLMMonitor, url: str) -> str:
    tick = monitor.latest().get(url)
    return "" if tick is None else tick.snapshot.condition.value


def test_what_is_usual_is_kept_from_watch_to_watch(tmp_path: Path) -> None:
    recording = read_recording(DATA / "engine_sigstop_s0.jsonl.gz")
    began = min(one.timestamp for one in recording.observations)
    seen = [one for one in recording.observations if not isinstance(one, ProcessObservation)]  # its host was pressed

    async def watch(store: PersistenceManager) -> float:
        learned = LearnedLoads(store)
        pipeline = TargetPipeline("http://x:1", tracker=LifecycleTracker(resume=False))
        await learned.take_up(pipeline)
        for count in range(39):
            now = began + count
            pipeline.step(now, [one for one in seen if now - 1.0 < one.visible_at <= now])
        await learned.let_go(pipeline)
        await learned.save()  # it is not there any more
        state, _ = store.load_model("load_baseline/http://x:1")
        return math.fsum(looks for _, looks, _ in state["levels"])

    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store:
        first, second = asyncio.run(watch(store)), asyncio.run(watch(store))
        assert first > 10
        assert second == 2 * first
        store.save_model("load_baseline/http://x:1", ["damaged"])
        assert asyncio.run(watch(store)) == first
