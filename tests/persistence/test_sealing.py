"""Hot rows become blocks: nothing lost, nothing twice, whoever writes, reads, fails or dies meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import threading
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.waiting import wait_until

from vllm_monitor.clock import ManualClock
from vllm_monitor.errors import StoreDamagedError, StoreUnavailableError
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.persistence.maintenance.maintenance_lock import MaintenanceLock
from vllm_monitor.persistence.samples import scrape_sealing, sealing
from vllm_monitor.persistence.samples.blocks import codec
from vllm_monitor.records import Layout, MetricKind, Series

OpenStore = Callable[..., PersistenceManager]
PAGE = Layout(
    [Series("a_total", (), MetricKind.COUNTER), Series("g"), *(Series("w", (("n", str(n)),)) for n in range(9))]
)
BEGIN = 1_700_000_000.0
COUNT = 80


@pytest.fixture
def open_store(open_store: OpenStore) -> OpenStore:
    """The samples are of 2023: nothing of them is too old, nor old enough to be joined."""

    def open_it(**settings: Any) -> PersistenceManager:
        settings.setdefault("cold_after_seconds", 1e9)
        return open_store(metrics_retention_days=36500, **settings)

    return open_it


def fill(store: PersistenceManager, scrapes: int, start: int = 0, target: str = "t") -> None:
    for number in range(start, start + scrapes):
        values = array("d", [number, -number / 7, *range(number, number + 9)])
        store.save_scrape(PAGE, values, timestamp=BEGIN + number, target=target)
        store.save_metric("custom", "x", number, timestamp=BEGIN + number, target=target)


def values_of(store: PersistenceManager, name: str = "a_total", target: str | None = "t") -> list[float]:
    found = store.query_range(name, target=target)
    return found[0].values.tolist() if found else []


def rows_of(store: PersistenceManager, query: str) -> list[Any]:
    connection = sqlite3.connect(store.config.db_path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def change(store: PersistenceManager, statement: str, *values: Any) -> None:
    with sqlite3.connect(store.config.db_path) as connection:
        connection.execute(statement, values)
    connection.close()


def test_what_is_due_is_sealed(open_store: OpenStore) -> None:
    clock = ManualClock(BEGIN)
    store = open_store(synchronous=True, clock=clock, block_scrapes=40, block_seconds=100)
    fill(store, 39)
    assert store.run_maintenance().sealed_blocks == 0
    fill(store, 51, start=39)  # full, twice over
    assert store.run_maintenance().sealed_samples == 2 * 40 * len(PAGE)
    assert store.run_maintenance().sealed_blocks == 0
    clock.advance(101)  # by the maintainer's own clock
    report = store.run_maintenance()
    assert report.sealed_blocks == 2  # the rest of the scrapes, and the single samples
    fill(store, 1, start=90)
    fill(store, 1, start=191)  # by the times of the samples
    assert store.run_maintenance().sealed_blocks >= 1
    assert values_of(store) == [*range(91), 191.0]
    assert values_of(store, "x") == [*range(91), 191.0]


def test_it_happens_by_itself(open_store: OpenStore) -> None:
    store = open_store(block_scrapes=40, maintenance_interval_seconds=0.05)
    fill(store, 100)
    wait_until(lambda: store.get_statistics()["counts"]["blocks"] >= 2, "it seals by itself")
    assert values_of(store) == list(range(100))
    wait_until(lambda: store.get_statistics()["maintenance"]["sealed_blocks"] >= 2, "and says so")
    store.close()
    assert values_of(open_store()) == list(range(100))


def test_a_reader_beside_the_sealer_sees_everything_once(open_store: OpenStore) -> None:
    store = open_store(block_scrapes=30, maintenance_interval_seconds=0.01, cold_after_seconds=0)
    saved = 0
    faults: list[Any] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            least = saved
            for name in ("a_total", "x"):
                found = values_of(store, name)
                if found != list(range(len(found))) or not least <= len(found) <= saved + 1:
                    faults.append((name, least, saved, found[:3], len(found)))
            newest = store.get_metrics(metric_name="a_total", limit=5)
            if [one["value"] for one in newest] != sorted((one["value"] for one in newest), reverse=True):
                faults.append(newest)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(300):
        fill(store, 1, start=number)
        saved = number + 1
        if number % 20 == 0:
            stop.wait(0.02)
    wait_until(lambda: store.get_statistics()["maintenance"]["sealed_blocks"] >= 5, "many blocks are sealed")
    stop.set()
    for reader in readers:
        reader.join()
    assert faults == []
    assert values_of(store) == list(range(300))
    assert store.health().ok


def seal_and_write(folder: Path, label: str, count: int) -> None:
    config = PersistenceConfig(
        storage_dir=folder,
        block_scrapes=20,
        maintenance_interval_seconds=0.01,
        durable_timeout_seconds=30,
        metrics_retention_days=36500,
    )
    with PersistenceManager(config) as store:
        for number in range(count):
            fill(store, 1, start=number, target=label)
            fill(store, 1, start=number, target="shared")
            if number % 10 == 0:
                store.flush_all()
        assert store.health().ok, store.health()


def test_several_processes_seal_and_write(tmp_path: Path, open_store: OpenStore) -> None:
    context = multiprocessing.get_context("spawn")
    folder = tmp_path / "store"
    workers = [context.Process(target=seal_and_write, args=(folder, f"w{n}", COUNT)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    store = open_store()
    for _ in range(2):
        for number in range(2):
            for name in ("a_total", "x"):
                assert values_of(store, name, f"w{number}") == list(range(COUNT))
        for name in ("a_total", "x"):
            assert values_of(store, name, "shared") == [number for number in range(COUNT) for _ in range(2)]
        assert store.health().damaged_rows == 0
        store.run_maintenance(seal_all=True)
    assert rows_of(store, "SELECT count(*) FROM metrics") == [(0,)]


def test_a_writer_goes_on_after_somebody_else_sealed(open_store: OpenStore) -> None:
    writer = open_store(synchronous=True)
    fill(writer, 10)
    writer.flush_all()
    open_store(synchronous=True).run_maintenance(seal_all=True)
    fill(writer, 10, start=10)  # as a difference from a row that is gone, if it did not notice
    writer.flush_all()
    assert rows_of(writer, "SELECT kind FROM metrics WHERE kind < 3 ORDER BY id LIMIT 1") == [(1,)]
    assert values_of(writer) == list(range(20))
    assert writer.health().damaged_rows == 0


def test_rows_that_build_on_sealed_ones_stand_alone(open_store: OpenStore) -> None:
    store = open_store(synchronous=True, block_scrapes=25)
    fill(store, 130)
    store.run_maintenance()
    left = rows_of(store, "SELECT kind, previous_id FROM metrics WHERE kind < 3 ORDER BY id")
    assert left == [(1, 0), *((2, number) for number in [row[0] for row in rows_of(
        store, "SELECT id FROM metrics WHERE kind < 3 ORDER BY id"
    )][:-1])]  # fmt: skip
    assert values_of(store) == list(range(130))


@pytest.mark.parametrize("step", ["replace_rows", "_let_stand_alone"])
def test_a_failure_at_any_step_changes_nothing(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    store = open_store(synchronous=True)
    fill(store, 50)
    store.flush_all()
    original = getattr(scrape_sealing, step)

    def fail(*arguments: Any) -> None:
        original(*arguments)
        raise OSError("no")

    monkeypatch.setattr(scrape_sealing, step, fail)
    before = rows_of(store, "SELECT * FROM metrics")
    with pytest.raises(StoreUnavailableError, match="no"):
        store.run_maintenance(seal_all=True)
    assert rows_of(store, "SELECT * FROM metrics") == before
    assert rows_of(store, "SELECT count(*) FROM blocks") == rows_of(store, "SELECT count(*) FROM rollups") == [(0,)]
    monkeypatch.undo()
    store.run_maintenance(seal_all=True)
    assert values_of(store) == list(range(50))


def test_a_block_that_does_not_come_back_is_not_stored(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(synchronous=True)
    fill(store, 50)
    encode = codec.encode_block

    def forge(times: Any, sequences: Any, bits: Any, series: Any, **options: Any) -> bytes:
        bits = bits.copy()
        bits[7, 1] ^= 1
        return encode(times, sequences, bits, series, **options)

    monkeypatch.setattr(scrape_sealing, "encode_block", forge)
    with pytest.raises(StoreDamagedError, match="does not come back"):
        store.run_maintenance(seal_all=True)
    assert values_of(store, "g") == [-number / 7 for number in range(50)]
    assert rows_of(store, "SELECT count(*) FROM blocks WHERE kind = 1") == [(0,)]


def test_rows_that_somebody_else_took_are_not_sealed_twice(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(synchronous=True)
    fill(store, 50)
    store.flush_all()
    other = open_store(synchronous=True)
    encode = codec.encode_block

    def meanwhile(*arguments: Any, **options: Any) -> bytes:
        monkeypatch.undo()
        monkeypatch.setattr(MaintenanceLock, "_locked", lambda *_: True)  # a file system without locks
        other.run_maintenance(seal_all=True)
        return encode(*arguments, **options)

    monkeypatch.setattr(scrape_sealing, "encode_block", meanwhile)
    with pytest.raises(StoreUnavailableError, match="somebody else"):
        store.run_maintenance(seal_all=True)
    assert values_of(store) == values_of(store, "x") == list(range(50))


def test_damaged_rows_stay_and_the_others_are_sealed(open_store: OpenStore) -> None:
    store = open_store(synchronous=True, block_scrapes=40)
    fill(store, 100)
    store.flush_all()
    change(
        store, "UPDATE metrics SET payload = x'00' WHERE id = (SELECT id FROM metrics WHERE kind = 2 LIMIT 1 OFFSET 70)"
    )
    readable = values_of(store)
    assert 60 < len(readable) < 100
    report = store.run_maintenance(seal_all=True)
    assert report.damaged_rows == 100 - len(readable)
    assert values_of(store) == readable
    assert rows_of(store, "SELECT count(*) FROM metrics") == [(100 - len(readable),)]
    assert store.run_maintenance(seal_all=True).sealed_blocks == 0  # not again and again


@pytest.mark.parametrize("column", ["payload", "start_ms", "layout_id", "scrapes", "kind"])
def test_a_damaged_block_hides_only_itself(open_store: OpenStore, column: str) -> None:
    store = open_store(synchronous=True, block_scrapes=40)
    fill(store, 120)
    store.run_maintenance()
    assert rows_of(store, "SELECT count(*) FROM blocks WHERE kind = 1") == [(3,)]
    new = (
        "CAST(substr(payload, 1, 40) || x'FF' || substr(payload, 42) AS BLOB)"
        if column == "payload"
        else f"{column} + 1"
    )
    change(store, f"UPDATE blocks SET {column} = {new} WHERE id = (SELECT min(id) FROM blocks WHERE kind = 1)")  # noqa: S608  # ours
    assert values_of(store) == list(range(40, 120))
    assert len(store.get_metrics(metric_name="a_total", limit=None)) == 80
    assert store.health().damaged_rows > 0
    store.run_maintenance()


def test_only_one_process_at_a_time(open_store: OpenStore) -> None:
    store = open_store(synchronous=True, durable_timeout_seconds=0.05)
    with MaintenanceLock(store.config.storage_dir / "maintenance.lock").held(0.0) as ours:
        assert ours
        with pytest.raises(StoreUnavailableError, match="another process"):
            store.run_maintenance()
    store.run_maintenance()


def test_failures_are_counted_and_tried_again(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = threading.Event()
    failing.set()
    seal = sealing.Sealer.seal

    def sometimes(self: Any, *arguments: Any, **options: Any) -> Any:
        if failing.is_set():
            raise OSError("not now")
        return seal(self, *arguments, **options)

    monkeypatch.setattr(sealing.Sealer, "seal", sometimes)
    store = open_store(block_scrapes=5, maintenance_interval_seconds=0.01)
    fill(store, 20)
    wait_until(lambda: "not now" in store.health().message, "health says so")
    failing.clear()
    wait_until(lambda: store.health().ok and store.get_statistics()["counts"]["blocks"], "it is tried again")
    assert store.get_statistics()["maintenance"]["failures"] >= 3


def test_a_child_maintains_its_own(open_store: OpenStore) -> None:
    store = open_store(block_scrapes=20, maintenance_interval_seconds=0.02)
    fill(store, 50)
    wait_until(lambda: store.get_statistics()["counts"]["blocks"], "the parent seals")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            fill(store, 50, target="child")
            store.flush_all()
            store.run_maintenance(seal_all=True)
            status = 0 if values_of(store, "a_total", "child") == list(range(50)) else 2
            store.close()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    fill(store, 50, start=50)
    assert values_of(store) == list(range(100))
    assert values_of(store, "x", "child") == list(range(50))
