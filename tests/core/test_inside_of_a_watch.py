"""What the part inside a server left, through a real watch into the store: also when watches begin and end."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from tests.waiting import wait_until

from vllm_monitor import MonitorConfig, VLLMMonitor
from vllm_monitor.lifecycle_tracker import is_inside
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.simulator import SimulatorProcess
from vllm_monitor_engine.spool import Spool


def levers(spool: Spool, numbers: range) -> None:
    for number in numbers:
        at = time.time()
        spool.write(
            [
                {"kind": "lever", "t": at, "lever": "pause", "mode": "keep", "for_seconds": number, "done": True},
                {"kind": "totals", "t": at, "engines": {}, "rejected": {}, "in_flight": 0},
            ]
        )
        time.sleep(0.002)


def stored(store: PersistenceManager) -> tuple[list[Any], list[Any]]:
    told = [one.metadata["inside"] for one in store.get_checkpoints(limit=None) if is_inside(one)]
    events = store.get_events("inside_lever", limit=None)
    return (
        sorted(one["for_seconds"] for one in told if one["kind"] == "lever"),
        sorted(one.data["for_seconds"] for one in events),
    )


def has_told(store: PersistenceManager | None, turn: int) -> bool:
    """Events come at once, and checkpoints when a state is known; only the last watch lasts so long."""
    assert store is not None
    checkpoints, events = stored(store)
    return len(checkpoints if turn == 2 else events) == turn * 10 + 10


def test_watches_that_begin_and_end_tell_everything_once(tmp_path: Path) -> None:
    config = MonitorConfig(interval_seconds=0.2, spool_dir=tmp_path / "spool", predict=False)
    where = PersistenceConfig(storage_dir=tmp_path / "store")
    with SimulatorProcess(seed=1, rate=5.0) as server:
        header = {"pid": os.getpid(), "t": time.time(), "target_url": server.url}
        spool = Spool(tmp_path / "spool", f"{os.getpid()}-5-1", 1 << 20, header)
        for turn in range(3):
            levers(spool, range(turn * 10, turn * 10 + 10))
            with VLLMMonitor(config, persistence_config=where) as monitor:
                monitor.add_target(server.url)
                wait_until(lambda: has_told(monitor.persistence_manager, turn), "all is told")  # noqa: B023  # waited for at once
        spool.close()
    with PersistenceManager(where) as store:
        assert stored(store) == (list(range(30)), list(range(30)))
        (started,) = store.get_events("inside_started")
        assert (started.metadata["read"]["line"], started.metadata["read"]["api_server"]) == (60, "0")
        samples = store.get_metrics(metric_name="vllm_monitor_engine_in_flight_requests", limit=None)
        assert len(samples) == 30
