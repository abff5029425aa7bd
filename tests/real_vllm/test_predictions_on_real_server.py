"""KV exhaustion and overload of a real server: predicted before clients feel them, settled over a restart."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import vllm_env
import vllm_load
from vllm_monitor import VLLMMonitor
from vllm_monitor.failures import FAILURE_HAPPENED
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import FailurePrediction, PredictionOutcome
from vllm_server import VllmServer

pytestmark = pytest.mark.vllm_overload

CLIENT_LIMIT_SECONDS = 30.0
LEAST_LEAD_SECONDS = 10.0
CAPACITY = {"kv_exhaustion", "queue_saturation", "latency_breach"}
SMALL_CACHE = ("--block-size", "32", "--num-gpu-blocks-override", "96", "--max-num-seqs", "8")
FEW_PLACES = ("--max-num-seqs", "2")


@pytest.fixture
def server(
    request: pytest.FixtureRequest, vllm_environment: vllm_env.VllmEnvironment, tmp_path: Path
) -> Iterator[VllmServer]:
    """A server on one half of the cores; monitor and clients have the other."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs a core for the server and one for everybody else")
    half = len(cores) // 2
    log = tmp_path / "server.log"
    with VllmServer(vllm_environment, log, extra_args=request.param, cpus=cores[half:]) as found:
        os.sched_setaffinity(0, cores[:half])
        try:
            yield found
        finally:
            os.sched_setaffinity(0, cores)


def wait_for(condition: Callable[[], bool], limit_seconds: float, what: str) -> None:
    deadline = time.monotonic() + limit_seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def predicted(monitor: VLLMMonitor, since: float) -> list[FailurePrediction]:
    store = monitor.persistence_manager
    assert store is not None
    return [one for one in store.get_predictions(start_time=since, limit=None) if one.failure_type in CAPACITY]


def of_its_type_happened(store: PersistenceManager, prediction: FailurePrediction) -> bool:
    return any(
        event.data["failure_type"] == prediction.failure_type and event.timestamp >= prediction.timestamp
        for event in store.get_events(FAILURE_HAPPENED, limit=None)
    )


@contextmanager
def load(server: VllmServer, folder: Path, rate: float, max_tokens: tuple[int, int], seed: int) -> Iterator[Path]:
    """Clients in a process of their own; the file gets the time at which the first request failed."""
    path = folder / f"first-failure-{seed}"
    numbers = (rate, *max_tokens, CLIENT_LIMIT_SECONDS, seed)
    command = [sys.executable, str(Path(vllm_load.__file__)), server.url, server.model, *map(str, numbers)]
    with path.open("w") as output, subprocess.Popen(command, stdout=output) as process:
        try:
            yield path
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("server", "loads"),
    [
        pytest.param(SMALL_CACHE, [(8.0, (600, 700))], id="long answers fill the cache"),
        pytest.param(FEW_PLACES, [(rate, (250, 350)) for rate in (1.0, 3.0, 5.0)], id="ever more requests"),
    ],
    indirect=["server"],
)
def test_it_is_predicted_before_clients_feel_it_and_settled_over_a_restart(
    server: VllmServer, tmp_path: Path, loads: list[tuple[float, tuple[int, int]]]
) -> None:
    config = PersistenceConfig(storage_dir=tmp_path / "store")
    with ExitStack() as clients:
        failures = [clients.enter_context(load(server, tmp_path, 1.0, (16, 64), 1))]
        with VLLMMonitor(persistence_config=config) as monitor:
            monitor.add_target(server.url, log_file=server.log_file)
            time.sleep(40.0)
            began = time.time()
            for seed, (rate, lengths) in enumerate(loads, 2):
                failures.append(clients.enter_context(load(server, tmp_path, rate, lengths, seed)))
                if len(loads) > 1:
                    time.sleep(3.0)
            wait_for(lambda: bool(predicted(monitor, began)), 40.0, "nothing was predicted")
            made = {one.prediction_id: one for one in predicted(monitor, began)}
        with VLLMMonitor(persistence_config=config) as monitor:
            monitor.add_target(server.url, log_file=server.log_file)
            store = monitor.persistence_manager
            assert store is not None
            wait_for(lambda: any(path.read_text() for path in failures), 120.0, "no request failed")
            failed_at = min(float(path.read_text()) for path in failures if path.read_text())

            def settled() -> list[FailurePrediction]:
                outcomes = (PredictionOutcome.HAPPENED, PredictionOutcome.DID_NOT_HAPPEN, PredictionOutcome.CENSORED)
                found = [one for one in store.get_predictions(limit=None) if one.prediction_id in made]
                return [one for one in found if one.outcome in outcomes]

            wait_for(lambda: bool(settled()), 60.0, "none was settled")
            first = settled()[-1]
            assert first.outcome is PredictionOutcome.HAPPENED
            assert of_its_type_happened(store, first)
            again = [one for one in predicted(monitor, began) if one.failure_type == first.failure_type]
            assert [one.prediction_id for one in again] == [first.prediction_id], "a restart does not repeat it"
    assert failed_at - first.timestamp >= LEAST_LEAD_SECONDS
    assert first.contributing_factors
    print(f"{first.failure_type} was predicted {failed_at - first.timestamp:.1f} s before the first failed request")
