"""Guardrails as somebody in front of a terminal uses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.running import lines, run, start
from tests.core.recordings import DATA

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
