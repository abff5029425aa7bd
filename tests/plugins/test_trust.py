"""Only what the operator trusts runs: by the sha256 of its source, from a list outside of the store."""

from __future__ import annotations

import json
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.plugins.examples import COUNTER, managed, only, turns

from vllm_monitor import VLLMMonitor
from vllm_monitor.clock import ManualClock
from vllm_monitor.errors import ConfigurationError, PluginNotTrustedError, StoreUnavailableError
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager, StorageBackend
from vllm_monitor.persistence.documents.document_rows import document_checksum
from vllm_monitor.plugin_system import PluginManager, PluginState, TrustList, sha256_of, trust_list_of
from vllm_monitor.records import PluginRecord

BACKENDS = list(StorageBackend)


def edit_one_byte(folder: Path, backend: StorageBackend, *, with_checksum: bool = True) -> None:
    """As somebody with an editor, or the sqlite3 shell, would."""
    if backend is StorageBackend.SQLITE:
        with closing(sqlite3.connect(folder / "monitor.db")) as database:
            database.row_factory = sqlite3.Row
            row = dict(database.execute("SELECT * FROM documents WHERE kind = 'plugins'").fetchone())
            assert row["content"].count("turns += 1") == 1
            row["content"] = row["content"].replace("turns += 1", "turns += 2")
            if with_checksum:
                row["checksum"] = document_checksum(row)
            database.execute("UPDATE documents SET content = :content, checksum = :checksum WHERE id = :id", row)
            database.commit()
        return
    path = folder / "plugins.json"
    text = path.read_text()
    assert text.count("turns += 1") == 1
    path.write_text(text.replace("turns += 1", "turns += 2"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_after_a_restart_it_runs_and_its_metric_goes_on(tmp_path: Path, backend: StorageBackend) -> None:
    config = PersistenceConfig(storage_dir=tmp_path / "store", backend=backend)
    trust = TrustList(tmp_path / "trust.json")
    for round_number in (1, 2):
        with PersistenceManager(config) as store, managed(store, trust=trust) as (manager, clock):
            clock.advance(1000.0 * round_number)
            if round_number == 1:
                manager.register("counter", "collector", COUNTER)
            turns(manager, clock, 3)
            assert only(manager).state is PluginState.RUNNING
            found = store.get_metrics("custom", "my_turns")
            assert [one["value"] for one in found] == [3.0, 2.0, 1.0] * round_number


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_byte_of_its_source_changed_and_it_waits_for_trust(tmp_path: Path, backend: StorageBackend) -> None:
    config = PersistenceConfig(storage_dir=tmp_path / "store", backend=backend)
    trust = TrustList(tmp_path / "trust.json")
    with PersistenceManager(config) as store, managed(store, trust=trust) as (manager, _):
        manager.register("counter", "collector", COUNTER)
    edit_one_byte(tmp_path / "store", backend)
    with PersistenceManager(config) as store, managed(store, trust=trust) as (manager, clock):
        turns(manager, clock, 2)
        assert only(manager).state is PluginState.UNTRUSTED
        assert "was changed since it was registered" in only(manager).reason
        assert "plugins trust counter" in only(manager).reason
        assert store.get_metrics("custom") == []
        with pytest.raises(PluginNotTrustedError, match="was changed"):
            manager.call("counter", "collect")
        assert manager.trust("counter").state is PluginState.RUNNING
        turns(manager, clock, 2)
        assert [one["value"] for one in store.get_metrics("custom")] == [4.0, 2.0]


def test_a_row_that_was_damaged_runs_nothing(tmp_path: Path) -> None:
    config = PersistenceConfig(storage_dir=tmp_path / "store", backend=StorageBackend.SQLITE)
    trust = TrustList(tmp_path / "trust.json")
    with PersistenceManager(config) as store, managed(store, trust=trust) as (manager, _):
        manager.register("counter", "collector", COUNTER)
    edit_one_byte(tmp_path / "store", StorageBackend.SQLITE, with_checksum=False)
    with PersistenceManager(config) as store, managed(store, trust=trust) as (manager, clock):
        turns(manager, clock, 2)
        assert manager.all() == []
        assert store.health().damaged_rows


@pytest.mark.parametrize("backend", BACKENDS)
def test_imported_into_another_store_it_waits_for_trust(tmp_path: Path, backend: StorageBackend) -> None:
    from_config = PersistenceConfig(storage_dir=tmp_path / "a")
    with (
        PersistenceManager(from_config) as store,
        managed(store, trust=trust_list_of(from_config)) as (manager, _),
    ):
        manager.register("counter", "collector", COUNTER)
        store.export_data(tmp_path / "copy")
    config = PersistenceConfig(storage_dir=tmp_path / "b", backend=backend)
    trust = trust_list_of(config)  # the same file
    with PersistenceManager(config) as store:
        store.import_data(tmp_path / "copy")
        with managed(store, trust=trust) as (manager, clock):
            turns(manager, clock, 2)
            assert only(manager).state is PluginState.UNTRUSTED
            assert "comes from elsewhere" in only(manager).reason
            assert store.get_metrics("custom") == []
            manager.trust("counter")
            turns(manager, clock, 1)
            assert len(store.get_metrics("custom")) == 1
    assert "trust" not in " ".join(path.name for path in (tmp_path / "copy").rglob("*"))


def test_nothing_of_an_untrusted_source_is_run_or_even_parsed(tmp_path: Path) -> None:
    traces = tmp_path / "it ran"
    bad = PluginRecord("bad", "collector", f"open({str(traces)!r}, 'w')\n" + "(" * 100_000)
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path / "store")) as store:
        store.save_plugins([bad])
        with managed(store) as (manager, clock):
            turns(manager, clock, 2)
            assert only(manager).state is PluginState.UNTRUSTED
    assert not traces.exists()


def test_a_source_whose_trust_is_withdrawn_stops(tmp_path: Path) -> None:
    trust = TrustList(tmp_path / "trust.json")
    with managed(trust=trust) as (manager, clock):
        manager.register("counter", "collector", COUNTER)
        turns(manager, clock, 1)
        trust.distrust(sha256_of(COUNTER), "counter")
        manager.refresh()
        assert only(manager).state is PluginState.UNTRUSTED
        manager.trust("counter")
        turns(manager, clock, 1)
        assert only(manager).calls == 1  # begun anew
        manager.remove("counter")
        assert manager.all() == []
        assert not trust.is_trusted(sha256_of(COUNTER))


def test_removing_one_of_two_with_the_same_source_leaves_the_other(tmp_path: Path) -> None:
    with managed() as (manager, _):
        manager.register("one", "collector", COUNTER)
        manager.register("two", "collector", COUNTER)
        manager.remove("one")
        assert only(manager).state is PluginState.RUNNING


def test_stores_share_a_list_and_no_trust(tmp_path: Path) -> None:
    path, file = tmp_path / "trust.json", tmp_path / "counter.py"
    file.write_text(COUNTER)
    a, b = (TrustList(path, store=f"/{name}") for name in "ab")
    with managed(trust=a) as (first, _), managed(trust=b) as (second, _):
        first.add_file(file, follow=True)
        assert not b.is_trusted(sha256_of(COUNTER))
        second.register("counter", "collector", COUNTER)
        assert (a.followed(), b.followed()) == ({str(file): "counter"}, {})
        second.remove("counter")
        first.refresh()
        assert only(first).state is PluginState.RUNNING
        assert a.followed()
        first.register("counter", "collector", COUNTER + "# another\n")
        assert not a.is_trusted(sha256_of(COUNTER))  # what was replaced does not run again by itself
        assert not a.followed()


def test_the_list_is_private_and_says_what_it_is_about(tmp_path: Path) -> None:
    path = tmp_path / "new" / "trust.json"
    trust = TrustList(path, clock=ManualClock(5.0))
    trust.trust("a" * 64, "one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    written = json.loads(path.read_text())
    assert written["trusted"] == {"a" * 64: {"trusted_at": 5.0, "uses": [{"name": "one", "store": ""}]}}
    assert TrustList(path).is_trusted("a" * 64)
    assert not TrustList(path).is_trusted("b" * 64)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"trusted": 3}',
        b'{"trusted": {"a": 1}}',
        b"\xff\xfe",
        b'{"version": 2, "trusted": {}}',
    ],
)
def test_a_damaged_list_trusts_nothing_and_is_not_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trust.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with managed(trust=TrustList(path)) as (manager, _):
        assert TrustList(path).problem()
        with pytest.raises(StoreUnavailableError, match="trust"):
            manager.register("counter", "collector", COUNTER)
        assert manager.all() == []
        assert path.read_bytes() == content


def test_a_list_that_others_can_write_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    trust = TrustList(path)
    trust.trust("a" * 64, "one")
    path.chmod(0o666)
    assert not trust.is_trusted("a" * 64)
    assert "can be written by others" in trust.problem()


def test_a_list_inside_of_the_store_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("VLLMMON_TRUST_FILE", str(tmp_path / "trust.json"))
        with pytest.raises(ConfigurationError, match="lies in the store"):
            trust_list_of(PersistenceConfig(storage_dir=tmp_path))
    inside = PersistenceConfig(storage_dir=tmp_path, trust_file=tmp_path / "x" / ".." / "trust.json")
    with pytest.raises(ConfigurationError, match="lies in the store"):
        trust_list_of(inside)
    with pytest.raises(ConfigurationError, match="lies in the store"):
        VLLMMonitor(persistence_config=inside)


values = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.lists(st.integers(), max_size=2))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    record=st.builds(
        PluginRecord,
        name=st.text(min_size=1, max_size=5),
        plugin_type=st.sampled_from(["collector", "", "x", "panel"]),
        source=st.sampled_from([COUNTER, "", "x = (", "\udc80"]),
        version=st.text(max_size=5),
        config=st.dictionaries(st.text(max_size=3), values, max_size=2),
        dependencies=st.lists(values, max_size=2),
        enabled=st.booleans(),
        metadata=st.dictionaries(
            st.sampled_from(
                ["module", "interval_seconds", "config_schema", "disabled_because", "registered_sha256", "file"]
            ),
            values,
            max_size=3,
        ),
        target=st.text(max_size=5),
    )
)
def test_whatever_is_stored_has_a_state_and_harms_nothing(record: PluginRecord) -> None:
    """Hand-edited and imported records are trusted here, so that all of them is looked at."""
    trust = TrustList(None)
    trust.trust(sha256_of(record.source), record.name)

    class Store:
        def load_plugins(self) -> dict[str, PluginRecord]:
            return {record.name: record}

    manager = PluginManager(Store(), trust=trust)  # type: ignore[arg-type]  # all that constructing needs
    assert only(manager).state in PluginState
    assert only(manager).reason or only(manager).state is PluginState.READY
