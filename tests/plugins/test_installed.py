"""Plugins that other packages bring as entry points."""

from __future__ import annotations

import importlib.util
import py_compile
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from tests.plugins.examples import COUNTER, managed, only, turns

from vllm_monitor.errors import PluginError
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.plugin_system import PluginState, TrustList
from vllm_monitor.plugin_system.installed import sha256_of_package


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a plugin in a submodule, and one that leaves a trace when it is imported."""
    site = tmp_path / "site"
    (site / "brought" / "inner").mkdir(parents=True)
    (site / "brought" / "__init__.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'a').write('x')\nSTEP = 5\n")
    (site / "brought" / "inner" / "__init__.py").write_text("")
    (site / "brought" / "inner" / "counting.py").write_text(
        COUNTER.replace("turns += 1", "turns += brought.STEP").replace("turns = 0", "import brought\nturns = 0")
    )
    info = site / "brought-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(
        "[vllm_monitor.plugins]\ncounting = brought.inner.counting\nlost = no.such.module\nbuilt = sys\n"
    )
    monkeypatch.syspath_prepend(str(site))
    return site


def test_it_waits_for_trust_and_then_runs_again_after_a_restart(tmp_path: Path, package: Path) -> None:
    trust = TrustList(tmp_path / "trust.json")
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path / "store")) as store:
        with managed(store, trust=trust) as (manager, clock):
            assert only(manager).state is PluginState.UNTRUSTED
            assert "the package brought 1.5 brings it" in only(manager).reason
            turns(manager, clock, 1)
            assert not (tmp_path / "trace").exists()  # nothing of it was imported
            trusted = manager.trust("counting")
            assert (trusted.state, trusted.record.plugin_type) == (PluginState.RUNNING, "collector")
            assert (trusted.record.version, trusted.record.description) == ("1.0", "Counts its own turns.")
            turns(manager, clock, 2)
            assert [one["value"] for one in store.get_metrics("custom")] == [10.0, 5.0]
        with managed(store, trust=trust) as (manager, clock):
            clock.advance(1000.0)
            turns(manager, clock, 1)
            assert store.get_metrics("custom")[0]["value"] == 5.0
        (package / "brought" / "__init__.py").write_text("STEP = 6\n")  # any file of the package counts
        with managed(store, trust=trust) as (manager, clock):
            assert only(manager).state is PluginState.UNTRUSTED
        (package / "brought-1.5.dist-info" / "entry_points.txt").write_text("")
        with managed(store, trust=trust) as (manager, clock):
            assert only(manager).state is PluginState.INVALID
            assert "no package that is installed here brings it" in only(manager).reason


def test_trust_covers_what_runs(tmp_path: Path, package: Path) -> None:
    trust = TrustList(tmp_path / "trust.json")
    evil = tmp_path / "evil.py"
    evil.write_text("def collect(context): return {'evil': 1}\n")
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path / "store")) as store:
        with managed(store, trust=trust) as (manager, clock):
            manager.trust("counting")
        record = store.load_plugins()["counting"]
        store.save_plugins([replace(record, metadata={**record.metadata, "module": "evil"})])
        cache = package / "brought" / "inner" / "__pycache__"
        cache.mkdir()
        compiled = importlib.util.cache_from_source(str(package / "brought" / "inner" / "counting.py"))
        py_compile.compile(str(evil), compiled, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
        with managed(store, trust=trust) as (manager, clock):
            turns(manager, clock, 1)
            assert [one["metric_name"] for one in store.get_metrics("custom")] == ["my_turns"]
            # Upgraded beside the watch, and its process begins anew: the new code does not run.
            psutil.Process(manager.get("counting").metadata["pid"]).kill()
            counting = package / "brought" / "inner" / "counting.py"
            counting.write_text(counting.read_text().replace("my_turns", "new_turns"))
            turns(manager, clock, 3)
            assert {one["metric_name"] for one in store.get_metrics("custom")} == {"my_turns"}
            manager.refresh()
            assert manager.get("counting").state in (PluginState.UNTRUSTED, PluginState.DISABLED)


def test_a_namespace_package_counts_in_all_its_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in "ab":
        (tmp_path / place / "spread" / place).mkdir(parents=True)
        monkeypatch.syspath_prepend(str(tmp_path / place))
    (tmp_path / "a" / "spread" / "a" / "counting.py").write_text(COUNTER)
    other = tmp_path / "b" / "spread" / "b" / "other.py"
    other.write_text("x = 1\n")
    before = sha256_of_package("spread.a.counting")
    assert before
    other.write_text("x = 2\n")
    assert sha256_of_package("spread.a.counting") != before


@pytest.mark.parametrize("value", ["", ":", "a b", "..", "brought:x:y", "brought.inner.", "a.b.c", "1", "brought.none"])
def test_an_entry_point_that_makes_no_sense_keeps_no_other_away(package: Path, value: str) -> None:
    entries = package / "brought-1.5.dist-info" / "entry_points.txt"
    entries.write_text(f"[vllm_monitor.plugins]\nodd = {value}\ncounting = brought.inner.counting\n")
    with managed() as (manager, _):
        assert [one.name for one in manager.all()] == ["counting"]


def test_settings_of_one_that_is_installed(package: Path) -> None:
    file = package / "brought" / "inner" / "counting.py"
    schema = "{'properties': {'x': {'type': 'integer'}}}"
    file.write_text(file.read_text().replace('"version": "1.0"', f'"version": "1.0", "config_schema": {schema}'))
    with managed() as (manager, _):
        with pytest.raises(PluginError, match="not of type 'integer'"):
            manager.trust("counting", config={"x": "y"})
        assert only(manager).state is PluginState.UNTRUSTED
        assert manager.trust("counting", config={"x": 3}).state is PluginState.RUNNING
        assert manager.get("counting").record.config == {"x": 3}
