"""Whatever a plugin does, the monitor and the other plugins go on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.plugins.examples import COUNTER, managed, processes, turns
from tests.waiting import wait_until

from vllm_monitor.errors import ConfigurationError, PluginError, VLLMMonitorError
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.plugin_system import PluginManager, PluginState

STRATEGY_SOURCE = """
import time
def describe(context):
    return {"needs": [], "touches": [], "verified_by": "looking", "undone_by": "nothing"}
def act(context):
    time.sleep(2)
    return "ACT"
def verify(context):
    return "VERIFY"
undo = act
"""
FAILING = {
    "raises": ("def collect(context):\n    raise ValueError('no such thing')\n", "ValueError: no such thing (line 2)"),
    "exits": ("import sys\ndef collect(context):\n    sys.exit(4)\n", "SystemExit: 4 (line 3)"),
    "ends its process": ("import os\ndef collect(context):\n    os._exit(3)\n", "exit code 3"),
    "crashes": ("import ctypes\ndef collect(context):\n    ctypes.string_at(0)\n", "SIGSEGV"),
    "loops": ("def collect(context):\n    while True:\n        pass\n", "did not answer within 0.3 s"),
    "sleeps": ("import time\ndef collect(context):\n    time.sleep(1e6)\n", "did not answer within 0.3 s"),
    "takes a gigabyte": ("def collect(context):\n    return {'x': len(bytearray(1 << 30))}\n", "MemoryError"),
    "leaks": ("kept = []\ndef collect(context):\n    kept.append(bytearray(200 << 20))\n", "MemoryError"),
    "recurses": ("def collect(context):\n    return collect(context)\n", "RecursionError"),
    "answers no JSON": ("def collect(context):\n    return {'x': object()}\n", "TypeError"),
    "answers too much": ("def collect(context):\n    return {'x': 'y' * (5 << 20)}\n", "the most is"),
    "answers in circles": ("a = []\na.append(a)\ndef collect(context):\n    return a\n", "Circular"),
    "answers text": ("def collect(context):\n    return {'x': 'much'}\n", "'much', which is no number"),
    "names badly": ("def collect(context):\n    return {'my metric': 1}\n", "which is none for a metric"),
    "takes our names": ("def collect(context):\n    return {'vllm:num_requests_running': 1}\n", "not a plugin's"),
    "counts too high": ("def collect(context):\n    return {f'm{i}': 1 for i in range(9999)}\n", "the most is"),
    "kills its parent's group": (
        "import os, signal\ndef collect(context):\n    os.killpg(0, signal.SIGKILL)\n",
        "SIGKILL",
    ),
    "breaks its own errors": (
        "class E(Exception):\n    def __str__(self): raise E\ndef collect(context):\n    raise E\n",
        "E (line 4)",
    ),
}


@pytest.mark.parametrize("what", FAILING)
def test_what_fails_is_counted_and_disabled_with_the_reason(what: str, tmp_path: Path) -> None:
    source, reason = FAILING[what]
    with (
        PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store,
        managed(store) as (manager, clock),
    ):
        manager.register("good", "collector", COUNTER)
        manager.register("bad", "collector", source, timeout_seconds=0.3 if "0.3 s" in reason else 30.0)
        turns(manager, clock, 12)
        bad, good = manager.get("bad"), manager.get("good")
        assert bad.state is PluginState.DISABLED
        assert reason in bad.reason
        assert "3 times" in bad.reason
        assert "plugins enable bad" in bad.reason
        assert (good.state, good.failures, good.calls) == (PluginState.RUNNING, 0, 12)
        told = [event.event_type for event in store.get_events(limit=100) if event.data.get("plugin") == "bad"]
        assert told[:2] == ["plugin_disabled", "plugin_failed"]  # not one event for each failure
        assert len(told) <= (4 if what == "leaks" else 2)
        assert not store.load_plugins()["bad"].enabled
        assert store.get_metrics(metric_name="my_turns")[0]["value"] == 12.0
        assert [one["metric_name"] for one in store.get_metrics("custom")] == ["my_turns"] * 12  # nothing of the other


def test_a_disabled_one_stays_so_until_it_is_enabled(tmp_path: Path) -> None:
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store:
        with managed(store) as (manager, clock):
            manager.register("bad", "collector", FAILING["raises"][0])
            turns(manager, clock, 5)
            trust = manager.trust_list
        with managed(store, trust=trust) as (manager, clock):
            assert manager.get("bad").state is PluginState.DISABLED
            assert "no such thing" in manager.get("bad").reason
            assert manager.enable("bad").state is PluginState.RUNNING
            turns(manager, clock, 1)
            assert manager.get("bad").failures == 1


@pytest.mark.parametrize(
    ("source", "changes", "words"),
    [
        ("def collect(context:\n", {}, "line 1"),
        ("x = 1\n", {}, "needs a function collect"),
        ("def colect(context): pass\n", {}, "did you mean colect"),
        ("async def collect(context): pass\n", {}, "async"),
        ("def collect(context): pass\nraise ValueError('at once')\n", {}, "ValueError: at once (line 2)"),
        ("def collect(context): pass\nimport no_such_module\n", {}, "no_such_module"),
        ("def collect(context): pass\nx = bytearray(1 << 30)\n", {}, "MemoryError"),
        ("def collect(context): pass\n" + "(" * 5000 + ")" * 5000, {}, "plugin bad"),
        ("def collect(context): pass\n\0", {}, "plugin bad"),
        ("PLUGIN = dict(kind='collector')\ndef collect(context): pass\n", {}, "no dict of plain values"),
        ("PLUGIN = {'kid': 'collector'}\ndef collect(context): pass\n", {}, "did you mean kind"),
        ("PLUGIN = {'kind': 'panel'}\ndef render(context): pass\n", {}, "says it is a panel"),
        ("PLUGIN = {'timeout_seconds': 0}\ndef collect(context): pass\n", {}, "timeout_seconds"),
        ("PLUGIN = {'config_schema': {'type': 3}}\ndef collect(context): pass\n", {}, "no JSON Schema"),
        ("def collect(context): pass\n", {"config": {"x": object()}}, "no JSON"),
        ("def collect(context): pass\n", {"dependencies": ["other"]}, "add other first"),
        ("def collect(context): pass\n", {"dependencies": ["a b c"]}, "no dependency"),
    ],
)
def test_what_cannot_be_loaded_is_refused_and_changes_nothing(
    source: str, changes: dict[str, object], words: str, tmp_path: Path
) -> None:
    with (
        PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store,
        managed(store) as (manager, clock),
    ):
        manager.register("bad", "collector", COUNTER)
        with pytest.raises((PluginError, ConfigurationError), match="plugin") as raised:
            manager.register("bad", "collector", source, **changes)  # type: ignore[arg-type]  # what anyone may give
        assert words in str(raised.value)
        assert store.load_plugins()["bad"].source == COUNTER
        turns(manager, clock, 2)
        assert manager.get("bad").calls == 2


def test_a_wrong_config_is_named_and_defaults_are_filled_in() -> None:
    schema = {
        "type": "object",
        "properties": {"limit": {"type": "integer", "minimum": 1, "default": 7}},
        "additionalProperties": False,
    }
    source = (
        f"PLUGIN = {{'config_schema': {schema}}}\n"
        "def collect(context):\n    return {'my_limit': context['config']['limit']}\n"
    )
    with managed() as (manager, _):
        for config, words in (
            ({"limit": 0}, "limit: 0 is less than"),
            ({"limt": 3}, "'limt'"),
            ({"limit": "x"}, "integer"),
        ):
            with pytest.raises(PluginError, match=words):
                manager.register("mine", "collector", source, config=config)
        manager.register("mine", "collector", source)
        assert manager.call("mine", "collect") == {"my_limit": 7}
        remote = "PLUGIN = {'config_schema': {'$ref': 'http://127.0.0.1:9/x'}}\ndef collect(context): pass\n"
        with pytest.raises(PluginError, match="Unresolvable"):
            manager.register("remote", "collector", remote)


def test_a_plugin_that_prints_and_floods_does_no_harm() -> None:
    source = (
        "import sys\ndef collect(context):\n    print('x' * 300_000)\n    sys.stderr.write('y' * 300_000)\n"
        "    sys.stdin.read()\n    return {'m': 1}\n"
    )
    with managed() as (manager, clock):
        manager.register("loud", "collector", source)
        turns(manager, clock, 3)
        assert (manager.get("loud").calls, manager.get("loud").failures) == (3, 0)


def test_a_plugin_sees_no_secrets_of_the_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLMMON_API_KEY", "secret")
    monkeypatch.setenv("ITS_TOKEN", "named")
    source = (
        "PLUGIN = {'environment': ['ITS_TOKEN']}\nimport os\n"
        "def collect(context):\n    assert os.environ['ITS_TOKEN'] == 'named'\n"
        "    return {'seen': 'VLLMMON_API_KEY' in os.environ}\n"
    )
    with managed() as (manager, _):
        manager.register("mine", "collector", source)
        assert manager.call("mine", "collect") == {"seen": False}


def test_a_pattern_that_takes_for_ever_is_the_plugins_own_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_monitor.plugin_system.process.LOAD_SECONDS", 1.0)
    schema = "{'properties': {'x': {'pattern': '^(a+)+$'}}}"
    source = f"PLUGIN = {{'config_schema': {schema}}}\ndef collect(context): return {{}}\n"
    with managed() as (manager, _):
        manager.register("mine", "collector", source, config={"x": "aaa"})
        with pytest.raises(PluginError, match="did not answer"):
            manager.register("mine", "collector", source, config={"x": "a" * 45 + "!"})
        bad = source.replace("^(a+)+$", "(")
        with pytest.raises(PluginError, match=r"regex|error"):
            manager.register("mine", "collector", bad, config={"x": "aaa"})
        assert manager.get("mine").state is PluginState.RUNNING


def test_shared_memory_is_memory_too() -> None:
    source = """
import mmap, time
def collect(context):
    kept = mmap.mmap(-1, 400 << 20)
    for at in range(0, 400 << 20, 4096):
        kept[at] = 1
    time.sleep(5)
    return {}
"""
    with managed() as (manager, clock):
        manager.register("mine", "collector", source, memory_bytes=64 << 20, timeout_seconds=60.0)
        turns(manager, clock, 1)
        assert "it took more memory than it may have" in manager.get("mine").last_error


def test_what_a_plugin_says_is_one_line_of_bounded_length() -> None:
    source = "def collect(context):\n    raise ValueError('\\x1b]0;owned\\x07\\nnext\\u202e' + 'x' * 1_000_000)\n"
    with managed() as (manager, clock):
        manager.register("mine", "collector", source)
        turns(manager, clock, 1)
        said = manager.get("mine").last_error
        assert said.isprintable()
        assert len(said) < 700


def test_a_call_that_is_interrupted_does_not_answer_the_next() -> None:
    source = STRATEGY_SOURCE
    with managed() as (manager, clock):
        manager.register("mine", "strategy", source)
        turns(manager, clock, 1)
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            manager.call("mine", "act")
        assert manager.call("mine", "verify") == "VERIFY"


def interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def test_series_without_end_are_refused(tmp_path: Path) -> None:
    source = """
turns = 0
def collect(context):
    global turns
    turns += 1
    return [{"name": "m", "value": 1, "labels": {"id": f"{turns}-{n}"}} for n in range(2000)]
"""
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store, managed(store) as (manager, clock):
        manager.register("mine", "collector", source)
        turns(manager, clock, 6)
        assert "more than 10000 series" in manager.get("mine").last_error


def test_a_forked_child_leaves_the_plugins_of_its_parent_alone() -> None:
    with managed() as (manager, clock):
        manager.register("mine", "collector", COUNTER)
        turns(manager, clock, 1)
        child = os.fork()
        if child == 0:
            manager.close()
            os._exit(0)
        os.waitpid(child, 0)
        turns(manager, clock, 2)
        assert (manager.get("mine").calls, manager.get("mine").failures) == (3, 0)


def test_a_machine_without_processes_to_spare_is_not_the_plugins_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with managed() as (manager, clock):
        manager.register("mine", "collector", COUNTER)
        manager.enable("mine", enabled=False)
        manager.enable("mine")
        with monkeypatch.context() as patched:
            patched.setattr(subprocess, "Popen", refuse)
            turns(manager, clock, 5)
            with pytest.raises(PluginError, match="no process can be started"):
                manager.register("other", "collector", COUNTER)
        assert manager.get("mine").failures == 0
        turns(manager, clock, 1)
        assert manager.get("mine").calls == 1


def refuse(*arguments: object, **named: object) -> None:
    raise OSError(24, "Too many open files")


@pytest.mark.parametrize(
    "arguments",
    [
        {"config": "x"},
        {"config": 5},
        {"dependencies": 5},
        {"dependencies": "other"},
        {"config_schema": {}},
        {"environment": ["X"]},
        {"source": b"x"},
        {"name": 5},
        {"plugin_type": []},
        {"interval_seconds": "x"},
        {"timeout_seconds": float("nan")},
        {"memory_bytes": -1},
        {"anything": object()},
    ],
)
def test_arguments_that_make_no_sense_have_clear_errors_and_leave_no_trust(
    tmp_path: Path, arguments: dict[str, object]
) -> None:
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store, managed(store) as (manager, _):
        given: dict[str, Any] = {"name": "mine", "plugin_type": "collector", "source": COUNTER, **arguments}
        with pytest.raises(VLLMMonitorError):
            manager.register(**given)
        assert manager.all() == []
        assert not manager.trust_list.trusted()


def test_closing_does_not_wait_for_a_change_that_hangs() -> None:
    manager = PluginManager()
    manager.start()
    hanging = threading.Thread(target=register_one_that_hangs, args=(manager,), daemon=True)
    hanging.start()
    wait_until(processes, "its trial to begin")
    manager.close()
    hanging.join(5.0)
    assert not hanging.is_alive()


def register_one_that_hangs(manager: PluginManager) -> None:
    with contextlib.suppress(PluginError):
        manager.register("mine", "collector", "while True: pass\ndef collect(context): pass\n")


def test_turns_do_not_wait_for_a_plugin_that_hangs() -> None:
    manager = PluginManager()
    manager.start()
    try:
        manager.register("slow", "collector", FAILING["loops"][0], timeout_seconds=5.0)
        manager.register("good", "collector", COUNTER, interval_seconds=0.1)
        began = time.monotonic()
        manager.step(dict)
        assert time.monotonic() - began < 0.5

        def goes_on() -> bool:
            manager.step(dict)
            return manager.get("good").calls >= 5

        wait_until(goes_on, "the other to go on", 4.0)
        began = time.monotonic()
    finally:
        manager.close()
    assert time.monotonic() - began < 3.0  # also in the middle of a call


def test_no_process_outlives_the_monitor_however_it_ends(tmp_path: Path) -> None:
    """Killed while one plugin sleeps in a call, one is idle, and one has started a process of its own."""
    program = textwrap.dedent("""
        import sys, time
        from vllm_monitor.plugin_system import PluginManager
        manager = PluginManager()
        manager.start()
        idle = "import subprocess\\nsubprocess.Popen(['sleep', '1000'])\\ndef collect(context): return {}\\n"
        manager.register("idle", "collector", idle, interval_seconds=1000)
        manager.register("loops", "collector", "def collect(context):\\n    while True: pass\\n", timeout_seconds=1.0)
        manager.step(dict)
        print("ready", flush=True)
        time.sleep(1000)
    """)
    monitor = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert monitor.stdout is not None
    assert monitor.stdout.readline() == "ready\n"
    watched = psutil.Process(monitor.pid)
    wait_until(lambda: len(watched.children(recursive=True)) >= 3, "its plugins to run")
    started = watched.children(recursive=True)
    monitor.kill()
    monitor.communicate()
    wait_until(lambda: not any(one.is_running() and one.status() != "zombie" for one in started), "them to end", 10.0)
