"""The JSON backend and what first arrived in another store."""

from __future__ import annotations

import shutil
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vllm_monitor.clock import ManualClock
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager, StorageBackend
from vllm_monitor.persistence.damage.check import check_store
from vllm_monitor.persistence.json_backend.json_lines import read_lines
from vllm_monitor.persistence.json_backend.json_store import JsonStore
from vllm_monitor.records import Event, Layout, MetricKind, Series

A, B, C = (Series(name, (("engine", "0"),), MetricKind.COUNTER) for name in ("a_total", "b_total", "c_total"))


def opened(folder: Path, backend: StorageBackend = StorageBackend.JSON, **more: Any) -> PersistenceManager:
    config = PersistenceConfig(storage_dir=folder, backend=backend, **more)
    return PersistenceManager(config, synchronous=True, clock=ManualClock(1000.0))


def fill(store: PersistenceManager) -> None:
    """Series that come and go, so that blocks have gaps; single samples with odd tags and metadata."""
    for number in range(300):
        page = Layout([A, B] if number % 2 else [A, B, C])
        store.save_scrape(page, array("d", [number, -0.0, 7.5][: len(page)]), timestamp=60 + number, target="t")
        store.save_metric("custom", "queue", number, {"n": number % 2 == 1}, {"at": Path("/p")}, timestamp=60 + number)
    store.save_event(Event(timestamp=1.0, event_type="e", message="m"))


def samples(store: PersistenceManager) -> list[str]:
    return sorted(map(repr, store.get_metrics(limit=None)))


@pytest.fixture
def imported(tmp_path: Path) -> Iterator[tuple[PersistenceManager, list[str]]]:
    """A JSON store into which a sealed store was imported, and what that held."""
    with opened(tmp_path / "sqlite", StorageBackend.SQLITE) as source:
        fill(source)
        source.run_maintenance(seal_all=True)
        wanted = samples(source)
        source.export_data(tmp_path / "archive")
    with opened(tmp_path / "store") as store:
        store.import_data(tmp_path / "archive")
        yield store, wanted


def copy_of(store: PersistenceManager, folder: Path) -> Path:
    """The files as they would be found after a sudden death."""
    shutil.copytree(store.config.storage_dir, folder, ignore=shutil.ignore_patterns("index.db*"))
    return folder


def test_an_import_is_in_the_lines_when_it_returns(
    imported: tuple[PersistenceManager, list[str]], tmp_path: Path
) -> None:
    store, wanted = imported
    assert samples(store) == wanted
    rolled_up = [one.values.tolist() for one in store.query_range("queue", step_seconds=60, aggregation="max")]
    with opened(copy_of(store, tmp_path / "copy")) as again:
        assert samples(again) == wanted
        assert len(again.get_events()) == 1
        assert [
            one.values.tolist() for one in again.query_range("queue", step_seconds=60, aggregation="max")
        ] == rolled_up
        assert again.get_statistics()["counts"]["rollups"] == store.get_statistics()["counts"]["rollups"]


def test_imported_samples_can_be_read_by_a_person(imported: tuple[PersistenceManager, list[str]]) -> None:
    store, _ = imported
    found = [line.fields or {} for line in read_lines(store.config.storage_dir / "imported.jsonl")]
    scrapes = [fields for fields in found if "values" in fields]
    assert len(scrapes) == 300
    assert {None in fields["values"] for fields in scrapes} == {True, False}  # a block of series that come and go
    assert sum(fields.get("metric_name") == "queue" for fields in found) == 300
    assert {fields["origin"] for fields in found if "origin" in fields} != {store.get_statistics()["store_id"]}


def test_importing_twice_adds_no_line(imported: tuple[PersistenceManager, list[str]], tmp_path: Path) -> None:
    store, wanted = imported
    folder = store.config.storage_dir
    before = {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}
    store.import_data(tmp_path / "archive")
    assert samples(store) == wanted
    assert {path.name: path.read_bytes() for path in folder.glob("*.jsonl")} == before


def test_the_check_is_content_with_it(imported: tuple[PersistenceManager, list[str]], tmp_path: Path) -> None:
    store, _ = imported
    fill(store)
    store.flush_all()
    assert check_store(store.config).findings == ()
    store.close()
    assert check_store(store.config).ok
    path = store.config.storage_dir / "events.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"m"', b'"n"', 1))
    assert "line 1 of events.jsonl" in str(check_store(store.config).findings)


def test_imported_samples_expire(imported: tuple[PersistenceManager, list[str]], tmp_path: Path) -> None:
    store, wanted = imported
    inner = store._writer.store
    assert isinstance(inner, JsonStore)
    with inner.engine.connect().execution_options(begin="IMMEDIATE") as connection, connection.begin():
        connection.exec_driver_sql("DELETE FROM blocks WHERE kind = 1")
    store.save_event(Event(timestamp=2.0, event_type="e", message="m"))  # the next commit takes it along
    with opened(copy_of(store, tmp_path / "copy")) as again:
        assert samples(again) == [text for text in wanted if "'queue'" in text]


def test_numbers_of_samples_are_never_used_twice(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        fill(store)
        store.export_data(tmp_path / "archive")
        inner = store._writer.store
        assert inner is not None
        with inner.engine.connect().execution_options(begin="IMMEDIATE") as connection, connection.begin():
            last = connection.exec_driver_sql("SELECT max(id) FROM metrics").scalar_one()
            connection.exec_driver_sql("DELETE FROM metrics")
    for _ in range(2):
        with opened(tmp_path / "store") as store:
            assert samples(store) == []
            store.save_scrape(Layout([A]), array("d", [1]), timestamp=5000.0, target="t")
            store.flush_all()
            found = [line.fields or {} for line in read_lines(tmp_path / "store" / "samples.jsonl")]
            (new,) = (fields for fields in found if "values" in fields)
            assert new["sequence"] > last
            last = new["sequence"]
            store.import_data(tmp_path / "archive")  # they come home, with their old numbers
            assert len(samples(store)) == 1050 + 1
            inner = store._writer.store
            assert inner is not None
            with inner.engine.connect().execution_options(begin="IMMEDIATE") as connection, connection.begin():
                for statement in ("DELETE FROM metrics", "DELETE FROM blocks", "DELETE FROM rollups"):
                    connection.exec_driver_sql(statement)


def test_a_lost_imported_line_costs_only_itself(imported: tuple[PersistenceManager, list[str]], tmp_path: Path) -> None:
    store, wanted = imported
    folder = copy_of(store, tmp_path / "copy")
    path = folder / "imported.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    places = [at for at, line in enumerate(lines) if b'"origin"' in line]
    for at in (places[0], places[len(places) // 2], places[-1]):
        lines[at] = lines[at].replace(b":", b";", 1)
    path.write_bytes(b"".join(lines))
    with opened(folder) as again:
        found = samples(again)
        assert set(found) < set(wanted)
        assert len(wanted) - len(found) <= 9
        assert not again.health().ok
        assert np.isfinite(again.query_range("a_total", target="t")[0].values).all()
