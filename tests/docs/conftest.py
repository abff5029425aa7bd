from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.waiting import wait_until

from vllm_monitor import MonitorConfig, VLLMMonitor
from vllm_monitor.persistence import PersistenceConfig
from vllm_monitor.simulator import SimulatorProcess


@pytest.fixture(scope="session")
def simulator_url() -> Iterator[str]:
    """A server for examples that need one."""
    with SimulatorProcess(seed=1, rate=5.0) as simulator:
        yield simulator.url


@pytest.fixture(scope="session")
def monitor_data(simulator_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store such as the examples find in ``./monitor_data``: a few seconds of one server."""
    folder = tmp_path_factory.mktemp("example") / "monitor_data"
    config = MonitorConfig(targets=(simulator_url,), interval_seconds=0.2)
    with VLLMMonitor(config, persistence_config=PersistenceConfig(storage_dir=folder)) as monitor:
        wait_until(lambda: _has_judged(monitor), "the server to be judged")
    return folder


def _has_judged(monitor: VLLMMonitor) -> bool:
    conditions = [tick.snapshot.condition.value for tick in monitor.latest().values()]
    return bool(conditions) and all(re.fullmatch("ok|idle|saturated", condition) for condition in conditions)
