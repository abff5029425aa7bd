"""A whole life of a real server, as the monitor tells it: start, work, death, start again, work."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vllm_env
from vllm_load import LoadGenerator
from vllm_monitor import VLLMMonitor
from vllm_monitor.lifecycle_tracker import TRANSITIONS
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import AlertState, LifecycleState, StateCheckpoint
from vllm_server import VllmServer

S = LifecycleState
START = [
    S.VALIDATING_ENVIRONMENT,
    S.LOADING_CONFIGURATIONS,
    S.INITIALIZING,
    S.SETTING_UP_WORKERS,
    S.LOADING_MODEL,
    S.ALLOCATING_MEMORY,
    S.COMPILING_KERNELS,
    S.READY,
]
AT_WORK = {S.SERVING.value, S.PROCESSING_REQUESTS.value}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("life")


@pytest.fixture(scope="module")
def story(vllm_environment: vllm_env.VllmEnvironment, folder: Path) -> Iterator[list[StateCheckpoint]]:
    """Every checkpoint of one life and the next, oldest first, and how long the death took to be seen."""
    log = folder / "server.log"
    first = VllmServer(vllm_environment, log)
    config = PersistenceConfig(storage_dir=folder / "store")
    second: VllmServer | None = None
    try:
        with VLLMMonitor(persistence_config=config) as monitor:
            monitor.add_target(first.url, log_file=log)
            first.wait_ready()
            wait_for(lambda: state_of(monitor, first.url) in AT_WORK, 30.0)
            with LoadGenerator(first.url, first.model):
                time.sleep(5.0)
            killed_at = time.time()
            first.process("engine").send_signal(signal.SIGKILL)
            wait_for(lambda: state_of(monitor, first.url) == S.CRITICAL_ERROR.value, 10.0)
            (folder / "seen_after").write_text(str(time.time() - killed_at))
            wait_for(lambda: bool(monitor.guardrails.firing(first.url)), 10.0)
            time.sleep(12.0)  # the API server ends by itself meanwhile
            first.stop()
            second = VllmServer(vllm_environment, log, port=first.port)
            second.wait_ready()
            wait_for(lambda: state_of(monitor, first.url) in AT_WORK, 30.0)
        with PersistenceManager(config) as store:
            yield list(reversed(store.get_checkpoints(limit=None, target=first.url)))
    finally:
        first.stop()
        if second is not None:
            second.stop()


def state_of(monitor: VLLMMonitor, url: str) -> str:
    state: str = monitor.lifecycle_tracker.get_state_report(url)["state"]
    return state


def wait_for(condition: Callable[[], bool], limit_seconds: float) -> None:
    deadline = time.monotonic() + limit_seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_start_passes_through_its_phases_in_order(story: list[StateCheckpoint]) -> None:
    states = [checkpoint.state for checkpoint in story]
    begun = states.index(S.READY)
    assert states[: begun + 1] == START
    times = [checkpoint.timestamp for checkpoint in story[: begun + 1]]
    assert times == sorted(times)
    ready = story[begun].metadata["startup_seconds"]
    assert next(iter(ready)) == "process_up"
    assert sum(ready.values()) > 5.0


def test_checkpoints_say_what_the_server_was_started_with(story: list[StateCheckpoint], folder: Path) -> None:
    serving = next(checkpoint for checkpoint in story if checkpoint.state in (S.SERVING, S.PROCESSING_REQUESTS))
    assert serving.arguments["max-model-len"] == "1024"
    assert "VLLM_CPU_KVCACHE_SPACE" in serving.environment
    assert serving.hardware_state["memory_total_bytes"] > 0


def test_a_death_is_seen_within_three_seconds_with_its_signature(story: list[StateCheckpoint], folder: Path) -> None:
    assert float((folder / "seen_after").read_text()) < 3.0
    failed = [checkpoint for checkpoint in story if checkpoint.state is S.CRITICAL_ERROR]
    signature = failed[-1].error_context
    assert signature is not None
    assert signature["condition"] == "engine_dead"
    assert "engine core exited unexpectedly" in signature["first_fatal_line"]


def test_it_is_at_work_again_and_the_outage_is_told(story: list[StateCheckpoint]) -> None:
    states = [checkpoint.state for checkpoint in story]
    died = states.index(S.CRITICAL_ERROR)
    again = states[died:]
    assert again[again.index(S.RECOVERING) :][: len(START) + 1] == [S.RECOVERING, *START]
    assert again[-1] in (S.SERVING, S.PROCESSING_REQUESTS)
    assert story[-1].metadata["counts"]["crashes"] == 1
    assert story[-1].metadata["counts"]["restarts"] == 1
    assert story[-1].timestamp - story[died].timestamp > 10.0


def test_every_step_is_one_of_the_table(story: list[StateCheckpoint]) -> None:
    for before, after in itertools.pairwise(story):
        assert after.previous_state is before.state
        assert after.state is before.state or after.state in TRANSITIONS[before.state]


def test_the_alert_of_the_death_is_stored(story: list[StateCheckpoint], folder: Path) -> None:
    assert story
    with PersistenceManager(PersistenceConfig(storage_dir=folder / "store")) as store:
        (alert,) = store.get_alerts(name="engine_dead")
    assert alert.state is AlertState.RESOLVED
    assert alert.resolved_at is not None
