"""Plugins of a monitor that watches: registered by a program, run beside the watch, there again after a restart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tests.plugins.examples import COUNTER, processes
from tests.waiting import wait_until

from vllm_monitor import MonitorConfig, VLLMMonitor
from vllm_monitor.errors import PluginError
from vllm_monitor.persistence import PersistenceConfig
from vllm_monitor.plugin_system import PluginState
from vllm_monitor.simulator import SimulatorProcess

FAST = MonitorConfig(interval_seconds=0.2)
RUNNING = """
def collect(context):
    return [{"name": "my_requests", "value": server["values"]["requests_running"], "target": url}
            for url, server in context["targets"].items() if "requests_running" in server["values"]]
"""


def monitor_in(folder: Path) -> VLLMMonitor:
    return VLLMMonitor(FAST, persistence_config=PersistenceConfig(storage_dir=folder / "store"))


def test_registered_from_source_it_runs_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    with SimulatorProcess(seed=1, rate=20.0) as simulator, monitor_in(tmp_path) as monitor:
        monitor.add_target(simulator.url)
        status = monitor.register_plugin("mine", "collector", RUNNING, description="What runs.", owner="me")
        assert status.record.metadata["owner"] == "me"
        assert monitor.persistence_manager is not None
        first = wait_until_stored(monitor, simulator.url)
        assert monitor.get_system_health()["plugins"]["mine"]["state"] == "running"
        monitor.close()
        with monitor_in(tmp_path) as second:
            second.add_target(simulator.url)
            assert [one.record.description for one in second.list_plugins("collector")] == ["What runs."]
            assert wait_until_stored(second, simulator.url, after=first) > first
            assert second.persist_plugins() == 1


def wait_until_stored(monitor: VLLMMonitor, url: str, after: float = 0.0) -> float:
    """The time of a sample of the plugin that is newer."""
    store = monitor.persistence_manager
    assert store is not None
    newest = [0.0]

    def is_stored() -> bool:
        found = store.get_metrics("custom", "my_requests", target=url)
        newest[0] = found[0]["timestamp"] if found else 0.0
        return newest[0] > after

    wait_until(is_stored, "a sample of the plugin")
    return newest[0]


def test_constructing_runs_none_and_none_outlives_the_monitor(tmp_path: Path) -> None:
    with monitor_in(tmp_path) as monitor:
        monitor.register_plugin("mine", "collector", COUNTER)
        wait_until(lambda: monitor.list_plugins()[0].calls, "a turn without any server")
        assert processes()
        monitor.stop()
        assert not processes()
        monitor.start()
        wait_until(lambda: monitor.list_plugins()[0].calls, "turns after it was started again")
    assert not processes()
    monitor = monitor_in(tmp_path)
    assert monitor.list_plugins()[0].state is PluginState.READY
    assert not processes()
    monitor.close()


def test_conditions_speak_of_what_a_detector_predicts(tmp_path: Path) -> None:
    source = """
def detect(context):
    for url in context["targets"]:
        yield {"target": url, "failure_type": "overheating", "probability": 0.9, "horizon_seconds": 3600}
"""
    with SimulatorProcess(seed=1) as simulator, monitor_in(tmp_path) as monitor:
        monitor.add_target(simulator.url)
        monitor.register_guardrail("hot", "It will be too hot", "predictions['overheating'] > 0.8")
        monitor.register_plugin("mine", "detector", source)
        wait_until(lambda: [one.name for one in monitor.guardrails.firing()] == ["hot"], "the guardrail to fire")


def test_one_that_only_follows_runs_no_plugins(tmp_path: Path) -> None:
    with SimulatorProcess(seed=1) as simulator, monitor_in(tmp_path) as monitor:
        monitor.add_target(simulator.url)
        monitor.register_plugin("mine", "collector", COUNTER)
        wait_until(lambda: monitor.list_plugins()[0].calls, "a turn")
        with monitor_in(tmp_path) as second:
            second.add_target(simulator.url)
            wait_until(lambda: second.get_system_health()["following"], "the second to follow")
            before = monitor.list_plugins()[0].calls
            wait_until(lambda: monitor.list_plugins()[0].calls > before + 3, "turns of the first")
            assert second.list_plugins()[0].calls == 0


def test_without_a_store_they_run_all_the_same() -> None:
    with VLLMMonitor(FAST, enable_persistence=False) as monitor:
        monitor.register_plugin("mine", "collector", COUNTER)
        wait_until(lambda: monitor.list_plugins()[0].calls, "a turn")


def test_trust_that_cannot_be_kept_is_told_and_nothing_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLLMMON_TRUST_FILE", str(tmp_path / "file" / "trust.json"))
    monitor = monitor_in(tmp_path)
    with pytest.raises(Exception, match="VLLMMON_TRUST_FILE"):
        monitor.register_plugin("mine", "collector", COUNTER)
    assert monitor.list_plugins() == []
    monitor.close()


def test_a_function_is_refused_with_the_way_to_do_it(tmp_path: Path) -> None:
    monitor = monitor_in(tmp_path)
    with pytest.raises(Exception, match="text of a module"):
        monitor.register_plugin("mine", "collector", lambda context: {})  # type: ignore[arg-type]  # what some will try
    with pytest.raises(PluginError, match="line 1"):
        monitor.register_plugin("mine", "collector", "def collect(:")
    monitor.close()


def test_a_program_that_forgets_to_close_ends_with_its_plugins(tmp_path: Path) -> None:
    program = (
        "from vllm_monitor import VLLMMonitor; from vllm_monitor.persistence import PersistenceConfig; import time\n"
        f"m = VLLMMonitor(persistence_config=PersistenceConfig(storage_dir={str(tmp_path / 'store')!r}))\n"
        "m.start()\n"
        "m.register_plugin('idle', 'collector', 'def collect(c): return {}')\n"
        "m.register_plugin('hang', 'collector', 'import time\\ndef collect(c): time.sleep(100)', timeout_seconds=100)\n"
        "time.sleep(1)\n"
        "import os; print(os.getpid())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "Traceback" not in done.stderr
    left = [one for one in psutil.process_iter(["cmdline"]) if "plugin_system" in " ".join(one.info["cmdline"] or [])]
    wait_until(lambda: not any(one.is_running() and one.ppid() == 1 for one in left), "its plugins to end")
