"""Export and import: nothing is lost, nothing is there twice, and every backend reads every archive."""

from __future__ import annotations

import gzip
import hashlib
import sqlite3
import threading
import time
import uuid
from array import array
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from tests.persistence.deeds import DEEDS, check_samples, save_samples
from tests.persistence.hostile import enqueue, everything, one_of_each, typed
from tests.persistence.rolled_up import rolled_up

from vllm_monitor.errors import ArchiveError, ConfigurationError, StoreUnavailableError
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.persistence.archive.manifest import FileEntry, Manifest
from vllm_monitor.records import (
    AttemptStatus,
    Event,
    GuardrailPolicy,
    Layout,
    LifecycleState,
    MetricKind,
    MitigationAttempt,
    MitigationOutcome,
    PluginRecord,
    Series,
)

OpenStore = Callable[..., PersistenceManager]
_BASE = time.time() // 60 * 60 - 3600  # young enough for retention
_OLDEST_STORE = Path(__file__).parents[1] / "data" / "stores" / "0001.db.gz"
_RETENTIONS = [f"{kind}_retention_days" for kind in ("checkpoint", "prediction", "alert", "event", "request")]
_TARGET = "http://vllm:8000"


def _save(store: PersistenceManager, numbers: range, target: str = _TARGET) -> None:
    for number in numbers:
        save_samples(store, target, number, _BASE)
    store.flush_all()


def _rows(store: PersistenceManager) -> list[tuple[Any, ...]]:
    """Every sample, in an order of its own."""
    found = store.get_metrics(limit=None)
    return sorted(
        (one["timestamp"], one["metric_name"], repr(one["tags"]), repr(one["value"]), repr(one["metadata"]))
        for one in found
    )


@pytest.mark.parametrize(("origin", "destination"), [("hybrid", "sqlite"), ("sqlite", "json"), ("json", "hybrid")])
def test_an_archive_carries_everything_between_backends(
    open_store: OpenStore, tmp_path: Path, origin: str, destination: str
) -> None:
    first = open_store(storage_dir=tmp_path / "first", backend=origin)
    _save(first, range(1, 101))
    for deed in DEEDS.values():
        deed.do(first, "label", 1)
        deed.do(first, "label", 2)
    exported = first.export_data(tmp_path / "archive")
    second = open_store(storage_dir=tmp_path / "second", backend=destination)
    steps: list[tuple[int, int, str]] = []
    report = second.import_data(tmp_path / "archive", progress=lambda *step: steps.append(step))
    check_samples(second, _TARGET, _BASE, 100)
    for deed in DEEDS.values():
        assert deed.found(second, "label") == deed.found(first, "label")
    assert _rows(second) == _rows(first)
    assert report.store_id == exported.store_id == first.get_statistics()["store_id"]
    assert report.added["samples"] == exported.counts["samples"] == len(_rows(first))
    assert {name: number for name, number in report.added.items() if number and name != "rollup_buckets"} == {
        name: number for name, number in exported.counts.items() if number and name not in ("blocks", "rollups")
    }
    assert all(0 <= done <= total for done, total, _ in steps)
    assert {"verifying files", "verifying rows", "samples"} <= {what for _, _, what in steps}


@pytest.mark.slow
@given(one_of_each())
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_records_come_back_to_the_bit(tmp_path: Path, records: list[Any]) -> None:
    # Stores of their own for every example (an id may come again), that keep times of all ages.
    folder = tmp_path / uuid.uuid4().hex
    kept: dict[str, Any] = dict.fromkeys(_RETENTIONS, 1e9)
    first = PersistenceConfig(storage_dir=folder / "first", **kept)
    second = PersistenceConfig(storage_dir=folder / "second", **kept)
    with PersistenceManager(first, synchronous=True) as origin, PersistenceManager(second, synchronous=True) as copy:
        for record in records:
            enqueue(origin, record)
        origin.export_data(folder / "archive")
        copy.import_data(folder / "archive")
        stored = {name: typed(record) for name, record in everything(origin).items()}
        assert {name: typed(record) for name, record in everything(copy).items()} == stored


def test_importing_twice_is_importing_once(open_store: OpenStore, tmp_path: Path) -> None:
    first = open_store(storage_dir=tmp_path / "first")
    _save(first, range(1, 51))
    DEEDS["plugin"].do(first, "label", 1)
    first.export_data(tmp_path / "archive")
    second = open_store(storage_dir=tmp_path / "second")
    second.import_data(tmp_path / "archive")
    counts = second.get_statistics()["counts"]
    again = second.import_data(tmp_path / "archive")
    assert set(again.added.values()) == {0}
    assert second.get_statistics()["counts"] == counts
    assert first.import_data(tmp_path / "archive").added["samples"] == 0


def test_later_archives_add_exactly_what_is_new(open_store: OpenStore, tmp_path: Path) -> None:
    first = open_store(storage_dir=tmp_path / "first")
    second = open_store(storage_dir=tmp_path / "second")
    _save(first, range(1, 41))
    first.export_data(tmp_path / "a")
    second.import_data(tmp_path / "a")
    _save(first, range(41, 61))
    first.run_maintenance(seal_all=True)  # the block holds what is known, and what is new
    _save(first, range(61, 81))
    first.export_data(tmp_path / "b")
    second.import_data(tmp_path / "b")
    check_samples(second, _TARGET, _BASE, 80)
    assert _rows(second) == _rows(first)
    second.import_data(tmp_path / "a")
    assert _rows(second) == _rows(first)


@pytest.mark.slow
def test_overlapping_ranges_of_time(open_store: OpenStore, tmp_path: Path) -> None:
    first = open_store(storage_dir=tmp_path / "first")
    second = open_store(storage_dir=tmp_path / "second")
    _save(first, range(1, 101))
    first.run_maintenance(seal_all=True)
    for name, start, end in (("b", 30, 70), ("a", 1, 50), ("c", 60, 100)):
        first.export_data(tmp_path / name, _BASE + start, _BASE + end)
        second.import_data(tmp_path / name)
    check_samples(second, _TARGET, _BASE, 100)
    assert _rows(second) == _rows(first)


def test_a_range_of_time_includes_both_ends(open_store: OpenStore, tmp_path: Path) -> None:
    first = open_store(storage_dir=tmp_path / "first")
    _save(first, range(1, 21))
    for number in range(1, 21):
        first.save_event(Event(timestamp=_BASE + number, event_type="e", message=str(number)))
    report = first.export_data(tmp_path / "archive", _BASE + 5, _BASE + 9)
    second = open_store(storage_dir=tmp_path / "second")
    second.import_data(tmp_path / "archive")
    assert sorted({one["timestamp"] - _BASE for one in second.get_metrics(limit=None)}) == [5, 6, 7, 8, 9]
    assert sorted(int(one.message) for one in second.get_events()) == [5, 6, 7, 8, 9]
    assert report.counts["events"] == 5
    with pytest.raises(ConfigurationError, match="after end_time"):
        first.export_data(tmp_path / "empty", 2.0, 1.0)


def test_a_backup_comes_back_into_its_own_store(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store(storage_dir=tmp_path / "store")
    _save(store, range(1, 61))
    store.run_maintenance(seal_all=True)
    _save(store, range(61, 71))  # not sealed when it is imported
    store.export_data(tmp_path / "archive")
    before = _rows(store)
    with closing(sqlite3.connect(tmp_path / "store" / "monitor.db")) as connection, connection:
        connection.execute("DELETE FROM blocks")  # as retention would
    assert len(_rows(store)) < len(before)
    store.import_data(tmp_path / "archive")
    assert _rows(store) == before
    store.run_maintenance(seal_all=True)
    assert store.import_data(tmp_path / "archive").added["samples"] == 0
    assert _rows(store) == before
    _save(store, range(71, 91))
    check_samples(store, _TARGET, _BASE, 90)


def test_a_store_that_was_set_back_does_not_number_samples_twice(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store(storage_dir=tmp_path / "store")
    _save(store, range(1, 21))
    store.close()
    database = tmp_path / "store" / "monitor.db"
    older = database.read_bytes()
    store = open_store(storage_dir=tmp_path / "store")
    _save(store, range(21, 41))
    store.export_data(tmp_path / "archive")
    store.close()
    database.write_bytes(older)
    store = open_store(storage_dir=tmp_path / "store")
    store.import_data(tmp_path / "archive")
    _save(store, range(41, 61))
    store.export_data(tmp_path / "later")
    second = open_store(storage_dir=tmp_path / "second")
    for archive in ("archive", "later"):
        second.import_data(tmp_path / archive)
    for one in (store, second):
        check_samples(one, _TARGET, _BASE, 60)


def test_samples_of_two_stores_stay_apart(open_store: OpenStore, tmp_path: Path) -> None:
    first = open_store(storage_dir=tmp_path / "first")
    second = open_store(storage_dir=tmp_path / "second")
    both = open_store(storage_dir=tmp_path / "both")
    layout = Layout([Series("vllm:x", (("engine", "0"),), MetricKind.GAUGE)])
    for store, value in ((first, 1.0), (second, 2.0)):
        store.save_scrape(layout, array("d", [value]), timestamp=_BASE, target=_TARGET)
        store.save_metric("custom", "mine", value, timestamp=_BASE)
        store.export_data(tmp_path / f"archive-{value:g}")
        both.import_data(tmp_path / f"archive-{value:g}")
    assert sorted(one["value"] for one in both.get_metrics(limit=None)) == [1.0, 1.0, 2.0, 2.0]


def test_an_archive_of_what_was_imported_keeps_the_origin(open_store: OpenStore, tmp_path: Path) -> None:
    first = open_store(storage_dir=tmp_path / "first")
    _save(first, range(1, 31))
    first.export_data(tmp_path / "a")
    second = open_store(storage_dir=tmp_path / "second")
    second.import_data(tmp_path / "a")
    _save(second, range(1, 11), target="http://other:8000")
    second.export_data(tmp_path / "b")
    assert first.import_data(tmp_path / "b").added["samples"] > 0
    check_samples(first, _TARGET, _BASE, 30)
    check_samples(first, "http://other:8000", _BASE, 10)
    assert _rows(first) == _rows(second)


def test_the_record_that_is_further_along_stays(open_store: OpenStore, tmp_path: Path) -> None:
    def attempt(status: AttemptStatus, outcome: MitigationOutcome | None = None) -> MitigationAttempt:
        return MitigationAttempt(
            "one", _BASE, LifecycleState.DEGRADED, {}, [], "restart", [], outcome=outcome, status=status
        )

    first = open_store(storage_dir=tmp_path / "first")
    second = open_store(storage_dir=tmp_path / "second")
    first.save_mitigation_attempt(attempt(AttemptStatus.INTENDED))
    first.export_data(tmp_path / "intended")
    second.import_data(tmp_path / "intended")
    first.save_mitigation_attempt(attempt(AttemptStatus.SETTLED, MitigationOutcome.SUCCESS))
    first.export_data(tmp_path / "settled")
    for name, added in (("settled", 1), ("intended", 0)):
        assert second.import_data(tmp_path / name).added["mitigation_attempts"] == added
        assert second.get_mitigation_history()[0].outcome is MitigationOutcome.SUCCESS


def test_documents_merge_entry_by_entry(open_store: OpenStore, tmp_path: Path) -> None:
    first = open_store(storage_dir=tmp_path / "first")
    second = open_store(storage_dir=tmp_path / "second")
    first.save_guardrails([GuardrailPolicy("theirs", "d", "x > 1"), GuardrailPolicy("both", "older", "x > 1")])
    first.export_data(tmp_path / "archive")
    second.save_guardrails([GuardrailPolicy("ours", "d", "x > 1"), GuardrailPolicy("both", "newer", "x > 1")])
    second.import_data(tmp_path / "archive")
    found = {one.name: one.description for one in second.load_guardrails()}
    assert found == {"theirs": "d", "ours": "d", "both": "newer"}


def test_an_import_without_merging_needs_an_empty_store(open_store: OpenStore, tmp_path: Path) -> None:
    first = open_store(storage_dir=tmp_path / "first")
    _save(first, range(1, 3))
    first.export_data(tmp_path / "archive")
    second = open_store(storage_dir=tmp_path / "second")
    second.import_data(tmp_path / "archive", merge=False)
    with pytest.raises(ArchiveError, match="samples or records already"):
        second.import_data(tmp_path / "archive", False)
    check_samples(second, _TARGET, _BASE, 2)


@pytest.mark.slow
def test_exporting_a_store_that_is_in_use(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store(storage_dir=tmp_path / "store")
    _save(store, range(1, 201))
    ended = threading.Event()

    def go_on() -> None:
        number = 201
        while not ended.is_set():
            save_samples(store, _TARGET, number, _BASE)
            number += 1
            ended.wait(0.002)

    busy = threading.Thread(target=go_on)
    busy.start()
    try:
        store.export_data(tmp_path / "archive")
    finally:
        ended.set()
        busy.join()
    copy = open_store(storage_dir=tmp_path / "copy")
    copy.import_data(tmp_path / "archive")
    check_samples(copy, _TARGET, _BASE, 200)
    store.flush_all()
    assert store.health().ok


def test_an_archive_is_private_and_one_piece(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store(storage_dir=tmp_path / "store")
    DEEDS["plugin"].do(store, "label", 1)
    DEEDS["model"].do(store, "label", 1)
    archive = tmp_path / "deep" / "archive"
    store.export_data(archive)
    modes = {path.name: path.stat().st_mode & 0o777 for path in [archive, *archive.rglob("*")]}
    assert {modes.pop(name) for name in ("archive", "models")} == {0o700}
    assert set(modes.values()) == {0o600}
    assert {"manifest.json", "monitor.db", "plugins.json"} <= set(modes)
    assert [path.name for path in archive.parent.iterdir()] == ["archive"]


def test_an_older_archive_is_replaced_and_nothing_else(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store(storage_dir=tmp_path / "store")
    archive, other = tmp_path / "archive", tmp_path / "other"
    archive.mkdir()
    store.export_data(archive)
    killed = tmp_path / ".archive.0123456789ab.part"
    killed.mkdir()
    (killed / "monitor.db").touch()
    _save(store, range(1, 3))
    assert store.export_data(archive).counts["samples"] > 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(ArchiveError, match="no archive of vllm-monitor"):
        store.export_data(other)
    assert (other / "thesis.txt").read_text() == "years of work"
    (tmp_path / "file").touch()
    with pytest.raises(ArchiveError, match="no folder"):
        store.export_data(tmp_path / "file")


def test_an_interrupted_import_is_completed_by_the_next(open_store: OpenStore, tmp_path: Path) -> None:
    first = open_store(storage_dir=tmp_path / "first")
    for target in ("a", "b", "c"):
        _save(first, range(1, 31), target)
    first.export_data(tmp_path / "archive")
    second = open_store(storage_dir=tmp_path / "second")

    def interrupt(done: int, total: int, what: str) -> None:
        if what == "samples" and second.get_metrics(limit=1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        second.import_data(tmp_path / "archive", progress=interrupt)
    assert 0 < len(_rows(second)) < len(_rows(first))
    second.import_data(tmp_path / "archive")
    assert _rows(second) == _rows(first)


def test_two_imports_at_once_add_each_sample_once(open_store: OpenStore, tmp_path: Path) -> None:
    first = open_store(storage_dir=tmp_path / "first")
    for target in ("a", "b"):
        _save(first, range(1, 101), target)
    first.export_data(tmp_path / "archive")
    stores = [open_store(storage_dir=tmp_path / "second") for _ in range(2)]
    added: list[int] = []
    threads = [
        threading.Thread(
            target=lambda store=store: added.append(store.import_data(tmp_path / "archive").added["samples"])
        )
        for store in stores
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(added) == len(_rows(first))
    assert _rows(stores[0]) == _rows(first)


def test_a_closed_store_neither_exports_nor_imports(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store(storage_dir=tmp_path / "store")
    store.export_data(tmp_path / "archive")
    store.close()
    with pytest.raises(StoreUnavailableError, match="closed"):
        store.export_data(tmp_path / "another")
    with pytest.raises(StoreUnavailableError, match="closed"):
        store.import_data(tmp_path / "archive")
    assert not (tmp_path / "another").exists()


def test_a_plugin_arrives_as_text(open_store: OpenStore, tmp_path: Path) -> None:
    first = open_store(storage_dir=tmp_path / "first")
    proof = tmp_path / "ran"
    first.save_plugins([PluginRecord("p", "collector", f"open({str(proof)!r}, 'w')")])
    first.export_data(tmp_path / "archive")
    second = open_store(storage_dir=tmp_path / "second")
    second.import_data(tmp_path / "archive")
    assert second.load_plugins()["p"].sha256 == first.load_plugins()["p"].sha256
    assert not proof.exists()


@pytest.mark.parametrize("name", ["gauge", pytest.param("mine", marks=pytest.mark.slow)])
def test_every_sample_is_rolled_up_once(open_store: OpenStore, tmp_path: Path, name: str) -> None:
    first = open_store(storage_dir=tmp_path / "first")
    second = open_store(storage_dir=tmp_path / "second")
    expected = Counter(int((_BASE + number) // 60 * 60_000) for number in range(1, 201))
    _save(first, range(1, 91))
    first.run_maintenance(seal_all=True)  # in the middle of a minute
    _save(first, range(91, 106))
    first.export_data(tmp_path / "a")
    second.import_data(tmp_path / "a")
    assert sum(rolled_up(tmp_path / "second", name).values()) == 105
    _save(first, range(106, 171))
    first.run_maintenance(seal_all=True)
    _save(first, range(171, 201))
    first.export_data(tmp_path / "b")
    second.import_data(tmp_path / "b")
    assert rolled_up(tmp_path / "second", name) == expected
    for archive in ("a", "b"):
        second.import_data(tmp_path / archive)
        first.import_data(tmp_path / archive)
    assert rolled_up(tmp_path / "second", name) == expected
    first.run_maintenance(seal_all=True)
    assert rolled_up(tmp_path / "first", name) == expected


@pytest.mark.slow
def test_coarse_roll_ups_count_every_sample_once(open_store: OpenStore, tmp_path: Path) -> None:
    settings = {"cold_after_seconds": 0, "maintenance_interval_seconds": 3600}
    stores = [open_store(storage_dir=tmp_path / name, **settings) for name in ("first", "second", "third")]
    first, second, third = stores
    base = _BASE - 3 * 86_400  # that day is over, so it is compacted
    for number in range(1, 301):
        save_samples(first, _TARGET, number, base)
    first.export_data(tmp_path / "a")
    second.import_data(tmp_path / "a")
    first.run_maintenance(seal_all=True)
    first.export_data(tmp_path / "b")
    expected = Counter(int((base + number) // 600 * 600_000) for number in range(1, 301))
    assert rolled_up(tmp_path / "first", "gauge", 600) == expected
    for archive in ("b", "a", "b"):
        second.import_data(tmp_path / archive)
        third.import_data(tmp_path / archive)
    for store, name in ((second, "second"), (third, "third")):
        for _ in range(2):
            store.run_maintenance(seal_all=True)
        assert rolled_up(tmp_path / name, "gauge", 600) == expected
        assert sum(rolled_up(tmp_path / name, "gauge").values()) == 300


def test_roll_ups_whose_samples_are_gone(open_store: OpenStore, tmp_path: Path) -> None:
    first = open_store(storage_dir=tmp_path / "first")
    _save(first, range(1, 101))
    first.run_maintenance(seal_all=True)
    before = rolled_up(tmp_path / "first", "gauge")
    with closing(sqlite3.connect(tmp_path / "first" / "monitor.db")) as connection, connection:
        connection.execute("DELETE FROM blocks")
    first.export_data(tmp_path / "archive")
    first.export_data(tmp_path / "minute", _BASE + 61, _BASE + 90)
    second = open_store(storage_dir=tmp_path / "second")
    assert second.import_data(tmp_path / "minute").added["rollup_buckets"] > 0
    assert list(rolled_up(tmp_path / "second", "gauge")) == [int((_BASE + 60) * 1000)]
    second.import_data(tmp_path / "archive")
    assert rolled_up(tmp_path / "second", "gauge") == before


def test_an_archive_of_an_older_schema_is_migrated_in_a_copy(open_store: OpenStore, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    database = archive / "monitor.db"
    database.write_bytes(gzip.decompress(_OLDEST_STORE.read_bytes()))
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("DELETE FROM metrics")
        connection.execute("PRAGMA journal_mode=DELETE")
        counts = {
            name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]  # noqa: S608  # two fixed names
            for name in ("checkpoints", "events")
        }
    data = database.read_bytes()
    manifest = Manifest(
        schema="0001",
        store_id="0" * 32,
        created_at=_BASE,
        created_by="vllm-monitor 0",
        start_time=None,
        end_time=None,
        counts=counts,
        files=(FileEntry("monitor.db", len(data), hashlib.sha256(data).hexdigest()),),
    )
    (archive / "manifest.json").write_bytes(manifest.to_bytes())
    store = open_store(checkpoint_retention_days=36500, event_retention_days=36500)
    added = store.import_data(archive).added
    assert {name: added[name] for name in counts} == counts
    assert len(store.get_checkpoints(limit=None)) == counts["checkpoints"] > 0
    assert database.read_bytes() == data
    assert sorted(path.name for path in archive.iterdir()) == ["manifest.json", "monitor.db"]
