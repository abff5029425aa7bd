"""A watch counts by itself how the runs of a server went, by the happy path that they are nearest to."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.waiting import wait_until

from vllm_monitor import MonitorConfig, VLLMMonitor
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.simulator import SimulatorProcess

SHUTDOWN = "(APIServer pid=1) INFO [shutdown] API server: shutdown triggered\n"  # a server that is asked to end
FAST = MonitorConfig(interval_seconds=0.2)


def counts(store: PersistenceManager) -> tuple[int, int]:
    (path,) = store.get_happy_paths()
    return path.success_count, path.failure_count


def watch_a_run(monitor: VLLMMonitor, simulator: SimulatorProcess) -> PersistenceManager:
    """Watch until there are pages enough to measure a run by."""
    store = monitor.persistence_manager
    assert store is not None
    before = len(store.get_metrics(metric_name="vllm:num_requests_running", limit=None))

    def pages() -> int:
        return len(store.get_metrics(metric_name="vllm:num_requests_running", limit=None)) - before

    wait_until(lambda: pages() >= 50, "fifty pages of a run", 40.0)
    return store


def test_a_run_that_ends_well_and_one_that_dies_are_counted(tmp_path: Path) -> None:
    with VLLMMonitor(FAST, persistence_config=PersistenceConfig(storage_dir=tmp_path)) as monitor:
        log = tmp_path / "server.log"
        log.write_text("")
        with SimulatorProcess(seed=1, rate=5.0) as simulator:
            monitor.add_target(simulator.url, log_file=log)
            store = watch_a_run(monitor, simulator)
            monitor.save_happy_path("good", "as it should be", last_seconds=60.0)
            assert counts(store) == (0, 0)
            log.write_text(
                "(APIServer pid=1) INFO [shutdown] API server: shutdown triggered\n"
            )  # what a server says that is asked to end
        wait_until(lambda: sum(counts(store)) == 1, "the run to be counted", 30.0)
        assert counts(store) == (1, 0)
        monitor.remove_target(simulator.url)
        with SimulatorProcess(seed=1, rate=5.0) as simulator:
            monitor.add_target(simulator.url)
            watch_a_run(monitor, simulator)
            os.kill(simulator.pid, signal.SIGKILL)
            wait_until(lambda: sum(counts(store)) == 2, "the run to be counted", 30.0)
        assert counts(store) == (1, 1)
        told = [event.message for event in store.get_events(limit=1000) if event.event_type == "run_settled"]
        assert len(told) == 2
        assert "went as well as as it should be" in told[1]
