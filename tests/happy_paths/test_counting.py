"""A watch counts by itself how the runs of a server went, by the happy path that they are nearest to."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest
from tests.waiting import wait_until

from vllm_monitor import MonitorConfig, VLLMMonitor
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.simulator import SimulatorProcess

SHUTDOWN = "(APIServer pid=1) INFO [shutdown] API server: shutdown triggered\n"  # a server that is asked to end
pytestmark = pytest.mark.slow
FAST = MonitorConfig(interval_seconds=0.2)


def counts(store: PersistenceManager) -> tuple[int, int]:
    (path,) = store.get_happy_paths()
    return path.success_count, path.failure_count


def watch_a_run(monitor: VLLMMonitor) -> PersistenceManager:
    """Watch until there are pages enough to measure a run by."""
    store = monitor.persistence_manager
    assert store is not None
    before = len(store.get_metrics(metric_name="vllm:num_requests_running", limit=None))

    def pages() -> int:
        return len(store.get_metrics(metric_name="vllm:num_requests_running", limit=None)) - before

    wait_until(lambda: pages() >= 50, "fifty pages of a run", 40.0)
    return store


def test_runs_are_counted_by_how_they_went_each_life_by_itself(tmp_path: Path) -> None:
    """One that ends as it should, one that is killed, and again one that ends well at the same place."""
    log = tmp_path / "server.log"
    log.write_text("")
    with VLLMMonitor(FAST, persistence_config=PersistenceConfig(storage_dir=tmp_path / "store")) as monitor:
        port = 0
        for life, expected in enumerate([(1, 0), (1, 1), (2, 1)]):
            with SimulatorProcess(seed=1, rate=5.0, port=port) as simulator:
                if not port:
                    monitor.add_target(simulator.url, log_file=log)
                    port = int(simulator.url.rpartition(":")[2])
                store = watch_a_run(monitor)
                if life == 0:
                    monitor.save_happy_path("good", "as it should be", last_seconds=60.0)
                if life == 1:
                    os.kill(simulator.pid, signal.SIGKILL)
                else:
                    with log.open("a") as file:
                        file.write(SHUTDOWN)
            wait_until(partial(is_counted, store, life + 1), "the run to be counted", 30.0)
            assert counts(store) == expected
        told = [event for event in store.get_events(limit=1000) if event.event_type == "run_settled"]
        assert [event.data["went_well"] for event in told] == [True, False, True]
        assert told[1].data["ended_as"] == "critical_error"


def is_counted(store: PersistenceManager, runs: int) -> bool:
    return sum(counts(store)) == runs
