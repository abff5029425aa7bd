"""A watch that is killed at any moment goes on as it was: alerts, switches, plugins, happy paths, chain of states."""

from __future__ import annotations

import itertools
import json
import random
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.cli.running import lines, run, start
from tests.plugins.examples import COUNTER
from tests.waiting import wait_until

from vllm_monitor.lifecycle_tracker import TRANSITIONS
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.simulator import SimulatorProcess

pytestmark = pytest.mark.slow
ROUNDS = 12


def status(store: Path, url: str) -> dict[str, Any]:
    (target,) = json.loads(run("status", "--storage-dir", store, "--json").stdout)["targets"]
    assert target["target"] == url
    return dict(target)


def alerts(store: Path, url: str) -> dict[str, tuple[float, float]]:
    """Of each alert that fires: since when its condition is met, and when it fired."""
    return {alert["name"]: (alert["since"], alert["fired_at"]) for alert in status(store, url)["alerts"]}


def guardrails(store: Path) -> dict[str, bool]:
    listed = lines(run("guardrails", "list", "--storage-dir", store, "--json").stdout)
    return {one["name"]: one["enabled"] for one in listed}


def plugins(store: Path) -> dict[str, tuple[str, str]]:
    listed = lines(run("plugins", "list", "--storage-dir", store, "--json").stdout)
    return {one["name"]: (one["state"], one["sha256"]) for one in listed}


def add_plugins(store: Path, folder: Path) -> None:
    """One that is trusted, one that is switched off, one that was edited since."""
    for name in ("counter", "off", "edited"):
        (folder / f"{name}.py").write_text(f"{COUNTER}# {name}\n".replace("my_turns", f"{name}_turns"))
        run("plugins", "add", folder / f"{name}.py", "--storage-dir", store)
    run("plugins", "disable", "off", "--storage-dir", store)
    document = store / "plugins.json"
    document.write_text(document.read_text().replace("# edited", "# Edited"))


def watch_and_kill(store: Path, url: str, seconds: float) -> None:
    process = start("watch", url, "--json", "--interval", "0.5", "--storage-dir", store)
    try:
        time.sleep(seconds)
    finally:
        process.kill()
        process.communicate()


def watch_until_it_fires(store: Path, url: str, name: str) -> None:
    process = start("watch", url, "--json", "--interval", "0.5", "--storage-dir", store)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if any(alert["name"] == name for alert in json.loads(line)["alerts"]):
                wait_until(lambda: name in alerts(store, url), "the alert to be stored")
                return
        pytest.fail("the watch ended before the alert fired")
    finally:
        process.kill()
        process.communicate()


def test_killed_again_and_again_it_forgets_nothing_and_fires_nothing_twice(tmp_path: Path) -> None:
    store, chance = tmp_path / "store", random.Random(4)
    with SimulatorProcess(seed=1, rate=5.0, faults=["freeze@22+900"]) as simulator:
        url = simulator.url
        run("guardrails", "add", "busy", "--condition", "requests_running > 0.0", "--storage-dir", store)
        run("guardrails", "disable", "saturated", "--storage-dir", store)
        add_plugins(store, tmp_path)
        watch_until_it_fires(store, url, "engine_stall")
        run("happy-paths", "record", "as it was", "--last", "1h", "--storage-dir", store)
        before, switches, trusted = alerts(store, url), guardrails(store), plugins(store)
        assert {name: state for name, (state, _) in trusted.items()} == {
            "counter": "ready",
            "off": "disabled",
            "edited": "untrusted",
        }
        paths = run("happy-paths", "list", "--json", "--storage-dir", store).stdout
        assert {"engine_stall", "busy"} <= set(before)
        assert switches["busy"]
        assert not switches["saturated"]
        for _ in range(ROUNDS):
            watch_and_kill(store, url, chance.uniform(0.1, 6.0))
            assert status(store, url)["state"] == "degraded"
            now = alerts(store, url)
            assert {name: now.get(name) for name in before} == before
            assert guardrails(store) == switches
            assert plugins(store) == trusted
            assert run("happy-paths", "list", "--json", "--storage-dir", store).stdout == paths
    with PersistenceManager(PersistenceConfig(storage_dir=store)) as manager:
        stored = manager.get_alerts(name="engine_stall", limit=None)
        turns = [one["value"] for one in manager.get_metrics("custom", "counter_turns", limit=None)]
        assert not manager.get_metrics("custom", "off_turns") + manager.get_metrics("custom", "edited_turns")
        chain = list(reversed(manager.get_checkpoints(limit=None, target=url)))
    assert len(stored) == 1
    assert turns.count(1.0) > 1  # it began anew in later lives of the watch
    assert not [
        one for one in psutil.process_iter(["cmdline"]) if "plugin_system" in " ".join(one.info["cmdline"] or [])
    ]
    for earlier, later in itertools.pairwise(chain):
        assert later.previous_state is earlier.state
        assert later.state is earlier.state or later.state in TRANSITIONS[earlier.state]
