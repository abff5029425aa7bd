"""Guardrails as somebody in front of a terminal uses them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.cli.running import lines, run, start
from tests.core.recordings import DATA
from tests.waiting import wait_until

from vllm_monitor.simulator import SimulatorProcess


def status(store: Path) -> list[dict[str, Any]]:
    (target,) = json.loads(run("status", "--json", "--storage-dir", store).stdout)["targets"]
    alerts: list[dict[str, Any]] = target["alerts"]
    return alerts


@pytest.fixture(scope="module")
def busy_server() -> Any:
    with SimulatorProcess(rate=5.0) as running:
        yield running


def test_an_alert_that_fires_survives_kill_minus_nine(busy_server: SimulatorProcess, tmp_path: Path) -> None:
    store = tmp_path / "store"
    run("guardrails", "add", "mine", "--condition", "health_latency_seconds >= 0.0", "--storage-dir", store)
    first = start("watch", busy_server.url, "--storage-dir", store, "--interval", "0.3", "--json")
    assert first.stdout is not None
    while not any(alert["name"] == "mine" for alert in json.loads(first.stdout.readline())["alerts"]):
        pass
    while not (before := [one for one in status(store) if one["name"] == "mine"]):
        pass
    first.kill()
    first.communicate()
    done = run("watch", busy_server.url, "--storage-dir", store, "--interval", "0.3", "--json", "--duration", "2")
    after = [one for one in status(store) if one["name"] == "mine"]
    assert [(one["since"], one["fired_at"]) for one in after] == [(one["since"], one["fired_at"]) for one in before]
    assert all(event["type"] != "alert_firing" for tick in lines(done.stdout) for event in tick["events"])


def test_a_new_one_over_what_is_stored(busy_server: SimulatorProcess, tmp_path: Path) -> None:
    store = tmp_path / "store"
    run("watch", busy_server.url, "--storage-dir", store, "--interval", "0.3", "--duration", "4")
    done = run(
        "guardrails", "test", "new", "--condition", "generation_tokens_per_second > 0.0 for 1s", "--json",
        "--storage-dir", store,
    )  # fmt: skip
    (alert,) = lines(done.stdout)
    assert alert["source"] == busy_server.url
    assert alert["fired_at"] - alert["since"] >= 1.0
    silent = run("guardrails", "test", "engine_stall", "--storage-dir", store)
    assert "would not have fired" in silent.stdout
    by_condition = run(
        "guardrails", "test", "new", "--condition", "state == 'processing_requests'", "--storage-dir", store
    )
    assert "it still would" in by_condition.stdout


def test_over_what_is_stored_of_a_server_that_died(tmp_path: Path) -> None:
    """No page comes from a dead server, and its death is found all the same."""
    store = tmp_path / "store"
    with SimulatorProcess(seed=1, rate=5.0) as simulator:
        watch = start("watch", simulator.url, "--interval", "0.3", "--storage-dir", store, "--json")
        try:
            assert watch.stdout is not None
            watch.stdout.readline()
            os.kill(simulator.pid, signal.SIGKILL)
            for line in watch.stdout:
                if any(alert["name"] == "api_dead" for alert in json.loads(line)["alerts"]):
                    break
            wait_until(lambda: [one["name"] for one in status(store)] == ["api_dead"], "the alert to be stored")
            watch.stdout.readline()
        finally:
            watch.terminate()
            watch.communicate()
    (alert,) = lines(run("guardrails", "test", "api_dead", "--json", "--storage-dir", store).stdout)
    (stored,) = status(store)
    assert alert["fired_at"] == pytest.approx(stored["fired_at"], abs=1.0)
    by_state = run("guardrails", "test", "x", "--condition", "state == 'critical_error'", "--storage-dir", store)
    assert "it still would" in by_state.stdout


def test_over_recordings() -> None:
    done = run("guardrails", "test", "engine_stall", DATA / "engine_sigstop_s0.jsonl.gz")
    assert "Work waits, and the engine makes no progress" in done.stdout


def test_switching_adding_and_removing(tmp_path: Path) -> None:
    store = ("--storage-dir", tmp_path / "store")
    run("guardrails", "disable", "engine_stall", *store)
    run("guardrails", "add", "mine", "--condition", "requests_waiting > 5.0", "--severity", "critical", *store)
    found = {one["name"]: one for one in lines(run("guardrails", "list", "--json", *store).stdout)}
    assert (found["engine_stall"]["enabled"], found["engine_dead"]["enabled"]) == (False, True)
    assert (found["mine"]["built_in"], found["mine"]["severity"]) == (False, "critical")
    assert "off" in run("guardrails", "list", *store).stdout
    run("guardrails", "enable", "engine_stall", *store)
    run("guardrails", "remove", "mine", *store)
    found = {one["name"]: one for one in lines(run("guardrails", "list", "--json", *store).stdout)}
    assert found["engine_stall"]["enabled"]
    assert "mine" not in found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["enable", "bogus"], "there is no guardrail"),
        (["remove", "engine_stall"], "comes with the package"),
        (["add", "x"], "needs a condition"),
        (["add", "x", "--condition", "requests_waitng > 1.0"], "did you mean requests_waiting"),
    ],
)
def test_what_makes_no_sense_is_said_and_changes_nothing(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = run("guardrails", *arguments, "--storage-dir", tmp_path / "store", check=done_code(arguments))
    assert words in done.stderr


def done_code(arguments: list[str]) -> int:
    return 1 if "requests_waitng" in " ".join(arguments) else 2
