"""Replacing a plugin that runs, without losing it when its successor is no good."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from tests.plugins.examples import COUNTER, managed, only, processes, turns

from vllm_monitor.errors import ConfigurationError, PluginError
from vllm_monitor.guardrails import Guardrails
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.plugin_system import PluginManager, PluginState, TrustList

BROKEN = "raise ValueError('not today')\ndef collect(context): pass\n"
SECOND = COUNTER.replace("turns += 1", "turns += 10")


def test_registering_again_replaces_what_runs() -> None:
    with managed() as (manager, clock):
        manager.register("counter", "collector", COUNTER)
        turns(manager, clock, 1)
        before = only(manager).metadata["pid"]
        manager.register("counter", "collector", SECOND)
        turns(manager, clock, 1)
        assert only(manager).metadata["pid"] != before
        assert manager.call("counter", "collect") == {"my_turns": 20}


def test_another_process_that_adds_a_version_is_noticed(tmp_path: Path) -> None:
    config, trust = PersistenceConfig(storage_dir=tmp_path / "store"), tmp_path / "trust.json"
    with PersistenceManager(config) as store, managed(store, trust=TrustList(trust)) as (manager, clock):
        manager.register("counter", "collector", COUNTER)
        with PersistenceManager(config) as other_store:
            other = PluginManager(other_store, trust=TrustList(trust))
            other.register("counter", "collector", SECOND)
            assert only(other).state is PluginState.READY
            manager.refresh()
            turns(manager, clock, 1)
            assert store.get_metrics("custom")[0]["value"] == 10.0
            other.enable("counter", enabled=False)
            manager.refresh()
            assert only(manager).state is PluginState.DISABLED
            other.enable("counter")
            manager.refresh()
            assert only(manager).state is PluginState.RUNNING
            other.remove("counter")
            manager.refresh()
            assert manager.all() == []


def test_a_successor_that_fails_changes_nothing_and_is_told_once(tmp_path: Path) -> None:
    """It comes by an edit of the stored document that the operator trusts; its trial fails."""
    folder, trust = tmp_path / "store", TrustList(tmp_path / "trust.json")
    with (
        PersistenceManager(PersistenceConfig(storage_dir=folder)) as store,
        managed(store, trust=trust) as (manager, clock),
    ):
        manager.register("counter", "collector", COUNTER)
        turns(manager, clock, 1)
        document = json.loads((folder / "plugins.json").read_text())
        document["entries"]["counter"]["source"] = BROKEN
        (folder / "plugins.json").write_text(json.dumps(document))
        manager.refresh()
        assert only(manager).state is PluginState.RUNNING
        assert "as it was before" in only(manager).reason
        assert "was changed since" in only(manager).reason
        manager.trust("counter")
        manager.refresh()
        turns(manager, clock, 2)
        assert only(manager).state is PluginState.RUNNING
        assert "ValueError: not today (line 1)" in only(manager).reason
        assert store.get_metrics("custom")[0]["value"] == 3.0
        told = [one.event_type for one in store.get_events() if one.event_type == "plugin_reload_failed"]
        assert len(told) == 1


def test_a_followed_file_is_taken_up_when_it_changes(tmp_path: Path) -> None:
    config, trust = PersistenceConfig(storage_dir=tmp_path / "store"), tmp_path / "trust.json"
    file = tmp_path / "counter.py"
    file.write_text(COUNTER)
    with PersistenceManager(config) as store, managed(store, trust=TrustList(trust)) as (manager, clock):
        manager.add_file(file, follow=True, config={"x": 1})
        turns(manager, clock, 1)
        file.write_text(SECOND)
        manager.refresh()
        turns(manager, clock, 1)
        assert store.get_metrics("custom")[0]["value"] == 10.0
        assert store.load_plugins()["counter"].config == {"x": 1}
        for broken in (BROKEN, "def collect(\n", "\udcff"):
            file.write_bytes(broken.encode("utf-8", "surrogateescape"))
            manager.refresh()
            turns(manager, clock, 1)
            assert only(manager).state is PluginState.RUNNING
        assert store.get_metrics("custom")[0]["value"] == 40.0
        file.unlink()
        manager.refresh()
        turns(manager, clock, 1)
        assert store.get_metrics("custom")[0]["value"] == 50.0
    file.write_text(COUNTER)  # changed while nobody watched
    with PersistenceManager(config) as store, managed(store, trust=TrustList(trust)) as (manager, clock):
        clock.advance(10_000.0)
        turns(manager, clock, 1)
        assert store.get_metrics("custom")[0]["value"] == 1.0


def test_what_it_was_given_stays_when_its_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "plain.py"
    file.write_text("def collect(context): return {'x': 1}\n")
    with managed() as (manager, _):
        manager.add_file(file, plugin_type="collector", config={"x": 1}, target="http://a:1", follow=True)
        file.write_text("def collect(context): return {'x': 2}\n")
        manager.refresh()
        assert manager.call("plain", "collect") == {"x": 2}
        record = only(manager).record
        assert (record.plugin_type, record.config, record.target) == ("collector", {"x": 1}, "http://a:1")


def test_a_file_that_is_not_followed_runs_as_it_was_added(tmp_path: Path) -> None:
    file = tmp_path / "counter.py"
    file.write_text(COUNTER)
    with managed() as (manager, clock):
        manager.add_file(file)
        file.write_text(SECOND)
        manager.refresh()
        turns(manager, clock, 1)
        assert manager.call("counter", "collect") == {"my_turns": 2}


def test_files_that_cannot_be_added(tmp_path: Path) -> None:
    pipe, binary, open_to_all = tmp_path / "pipe", tmp_path / "binary", tmp_path / "open.py"
    os.mkfifo(pipe)
    binary.write_bytes(b"\xff\xfe\x00")
    open_to_all.write_text(COUNTER)
    open_to_all.chmod(0o666)
    with managed() as (manager, _):
        for path in (tmp_path, pipe, binary, tmp_path / "none.py"):
            with pytest.raises(ConfigurationError):
                manager.add_file(path)
        with pytest.raises(ConfigurationError, match="written by others"):
            manager.add_file(open_to_all, follow=True)
        (tmp_path / "plain.py").write_text("def collect(context): return {}\n")
        with pytest.raises(PluginError, match="does not say what it is for"):
            manager.add_file(tmp_path / "plain.py")
        assert manager.add_file(tmp_path / "plain.py", plugin_type="collector").name == "plain"


def test_one_that_is_removed_or_given_settings_while_it_fails_stays_so(tmp_path: Path) -> None:
    source = "def collect(context):\n    raise ValueError(context['config'])\n"
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store, managed(store) as (manager, clock):
        other = PluginManager(store, trust=manager.trust_list)
        for name in ("gone", "changed"):
            manager.register(name, "collector", source)
        turns(manager, clock, 2)
        other.refresh()
        other.remove("gone")
        other.register("changed", "collector", source, config={"x": 2})
        turns(manager, clock, 1)  # the third failure
        assert list(store.load_plugins()) == ["changed"]
        assert store.load_plugins()["changed"].config == {"x": 2}


def test_one_that_cannot_be_loaded_anew_keeps_no_other_away(tmp_path: Path) -> None:
    broken = "def guardrails(context):\n    return [{'name': 'x', 'condition': 'restarts > 1', 'severity': []}]\n"
    good = broken.replace("[]", "'info'")
    file = tmp_path / "policies.py"
    file.write_text(good)
    with managed(guardrails=Guardrails()) as (manager, clock):
        manager.add_file(file, plugin_type="guardrail", follow=True)
        turns(manager, clock, 1)
        file.write_text(broken)
        manager.register("z_other", "collector", COUNTER)
        for _ in range(3):
            manager.refresh()
            turns(manager, clock, 1)
        assert manager.get("z_other").calls == 3
        assert manager.get("policies").state is PluginState.RUNNING
        assert len(processes()) == 2


def test_two_who_register_at_once_lose_nothing(tmp_path: Path) -> None:
    config, trust = PersistenceConfig(storage_dir=tmp_path / "store"), tmp_path / "trust.json"
    with PersistenceManager(config) as store:
        managers = [PluginManager(store, trust=TrustList(trust)) for _ in range(4)]

        def add(number: int) -> None:
            managers[number].register(f"p{number}", "collector", f"{COUNTER}# {number}\n")

        threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        managers[0].refresh()
        assert [one.state for one in managers[0].all()] == [PluginState.READY] * 4
