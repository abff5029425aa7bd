"""What the inside told of a server's life, as ``lifecycle`` and ``status`` show it."""

from __future__ import annotations

import json
from array import array
from pathlib import Path

from tests.cli.running import run

from vllm_monitor.clock import ManualClock, SystemClock
from vllm_monitor.core.stored_states import StoredStates
from vllm_monitor.lifecycle_tracker import LifecycleTracker
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.picture import LifeEvidence
from vllm_monitor.records import Condition, EngineNote, Layout, LifecycleState, RequestSummary, Series

TARGET = "http://one:8000"
JUDGED = LifeEvidence(condition=Condition.IDLE, reason="no work")


def fill(folder: Path) -> float:
    """A server that is idle, and one minute later tells of its start; returns when it was judged idle."""
    clock = ManualClock(float(int(SystemClock().now()) - 600))
    with PersistenceManager(PersistenceConfig(storage_dir=folder)) as store:
        tracker = LifecycleTracker(store, clock=clock)
        tracker.observe(TARGET, clock.now(), JUDGED, {})
        judged_at = clock.now()
        clock.advance(60.0)
        facts = {"config": {"max_num_seqs": 8}, "config_fingerprint": "ab" * 32, "kv_capacity_tokens": 8192}
        tracker.note_inside(TARGET, clock.now(), [EngineNote(clock.now(), "started", facts)])
    return judged_at


def test_lifecycle_shows_what_was_told(tmp_path: Path) -> None:
    fill(tmp_path)
    printed = run("lifecycle", "--storage-dir", tmp_path).stdout
    assert "inside: the engine is up; configuration abababababab" in printed
    lines = run("lifecycle", "--json", "--storage-dir", tmp_path).stdout.splitlines()
    outside, inside = (json.loads(line)["inside"] for line in lines)
    assert (outside, inside["kind"]) == (None, "started")


def test_status_shows_the_verdict_that_holds_and_the_engine(tmp_path: Path) -> None:
    judged_at = fill(tmp_path)
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store:
        store.save_scrape(Layout([Series("a")]), array("d", [1.0]), timestamp=judged_at, target=TARGET)
    (entry,) = json.loads(run("status", "--json", "--storage-dir", tmp_path).stdout)["targets"]
    assert (entry["condition"], entry["reason"], entry["since"]) == ("idle", "no work", judged_at)
    assert entry["engine"]["kv_capacity_tokens"] == 8192
    printed = run("status", "--storage-dir", tmp_path).stdout
    assert "8192 tokens" in printed
    assert "abababababab" in printed


def test_a_fact_of_the_inside_does_not_begin_a_state_anew(tmp_path: Path) -> None:
    judged_at = fill(tmp_path)
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store:
        states = StoredStates(store.get_checkpoints())
    state, _, figures = states.at(judged_at + 100.0)
    assert (state, figures["state_seconds"]) == (LifecycleState.SERVING, 100.0)


def test_status_sums_up_the_requests_that_were_told(tmp_path: Path) -> None:
    judged_at = fill(tmp_path)
    now = SystemClock().now()
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store:
        store.save_scrape(Layout([Series("a")]), array("d", [1.0]), timestamp=judged_at, target=TARGET)
        for number in range(20):
            store.save_request_summary(
                RequestSummary(
                    timestamp=now - 60 + number,
                    finish_reason="abort" if number == 3 else "length",
                    prompt_tokens=10,
                    output_tokens=100,
                    time_to_first_token_seconds=0.01 * (number + 1),
                    met_objective=number != 3,
                    target=TARGET,
                    metadata={"server_request_id": f"cmpl-{number}"},
                )
            )
        store.save_request_summary(RequestSummary(timestamp=now - 100_000, output_tokens=7, target=TARGET))
    (entry,) = json.loads(run("status", "--json", "--storage-dir", tmp_path).stdout)["targets"]
    seen = entry["requests"]
    assert (seen["count"], seen["prompt_tokens"], seen["output_tokens"]) == (20, 200, 2_000)
    assert seen["finish_reasons"] == {"length": 19, "abort": 1}
    assert seen["met_objective_ratio"] == 0.95
    assert (seen["time_to_first_token_p50_seconds"], seen["queue_p50_seconds"]) == (0.11, None)
    assert seen["newest"]["server_request_id"] == "cmpl-19"
    printed = run("status", "--storage-dir", tmp_path).stdout
    assert "length 19, abort 1" in " ".join(printed.split())
