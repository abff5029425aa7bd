"""A store that fails: full disks, broken files, other processes, clocks.

Over 500 lines: one stage of faults that all of these tests share.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.waiting import wait_until

from vllm_monitor.errors import RecordNotFoundError, StoreUnavailableError
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.persistence.sql_store import SqlStore
from vllm_monitor.records import (
    Event,
    GuardrailPolicy,
    Layout,
    LifecycleState,
    RequestSummary,
    Series,
    StateCheckpoint,
)

OpenStore = Callable[..., PersistenceManager]
WIDE = Layout([Series("a_total", (("n", str(number)),)) for number in range(300)])


def event(number: float) -> Event:
    return Event(timestamp=number, event_type="x", message=f"message {number}")


def fill(store: PersistenceManager, scrapes: int, start: int = 0) -> None:
    for second in range(start, start + scrapes):
        values = array("d", [(second * 7919 + column * 104729) % 1000003 / 7 for column in range(300)])
        store.save_scrape(WIDE, values, timestamp=second, target="t")
        store.save_metric("custom", "x", second, timestamp=second)


def times_of(store: PersistenceManager) -> list[int]:
    (series,) = store.query_range("a_total", tags={"n": "7"})
    return [time_ms // 1000 for time_ms in series.timestamps_ms.tolist()]


# --- a store that cannot be opened ---------------------------------------------------------------------


MOUNT, UMOUNT = shutil.which("mount"), shutil.which("umount")


def mount(*arguments: str) -> int:
    return subprocess.run([MOUNT or "", *arguments], capture_output=True, check=False).returncode


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not MOUNT or not UMOUNT or mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)):
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run([UMOUNT, "-l", str(folder)], check=True)


def test_a_folder_that_cannot_be_made(open_store: OpenStore, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailableError, match="cannot be opened") as caught:
        open_store(storage_dir=tmp_path / "file" / "store", required=True)
    assert "storage_dir" in caught.value.hint
    store = open_store(storage_dir=tmp_path / "file" / "store")
    fill(store, 5)
    record_id = store.save_event(event(1))
    assert not store.is_durable(record_id)
    health = store.health()
    assert (health.ok, health.degraded, health.not_durable) == (False, True, 1)
    assert health.hint
    assert len(times_of(store)) == 5
    with pytest.raises(StoreUnavailableError, match="cannot be read"):
        store.load_model("m")  # nobody can say that there is none
    assert store.get_events() == [Event(timestamp=1, event_type="x", message="message 1", event_id=record_id)]
    assert store.get_statistics()["degraded"]
    assert store.acquire_lease("t")
    assert not store.flush_all()
    assert any("held in memory" in record.message for record in caplog.records)
    (tmp_path / "file").unlink()  # and now it can be made
    wait_until(lambda: store.health().ok and store.is_durable(record_id), "the store opens by itself")
    assert len(times_of(store)) == 5


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        ("sqlite", "monitor.db-wal"),
        ("sqlite", "monitor.db-journal"),
        ("json", "happy_paths.json"),
        ("json", "events.jsonl"),
        ("hybrid", "guardrails.json"),
    ],
)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(
    open_store: OpenStore, tmp_path: Path, backend: str, name: str
) -> None:
    pipe = tmp_path / "store" / name
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    store = open_store(backend=backend, durable_timeout_seconds=0.2)
    assert name in store.health().message or name == "guardrails.json"
    store.load_guardrails()
    record_id = store.save_event(event(1))
    store.save_guardrails([GuardrailPolicy("g", "d", "x > 1")])
    pipe.unlink(missing_ok=True)
    store.flush_all()
    wait_until(lambda: store.is_durable(record_id) and not store.health().degraded, "it recovers by itself")
    assert [policy.name for policy in store.load_guardrails()] == ["g"]


def test_maintenance_says_in_words_what_stops_it(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store(synchronous=True, durable_timeout_seconds=0.05)
    fill(store, 1)
    blocker = sqlite3.connect(tmp_path / "store" / "monitor.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError, match="locked"):
        store.run_maintenance(seal_all=True)
    blocker.close()
    lock = tmp_path / "store" / "maintenance.lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()
    with pytest.raises(StoreUnavailableError, match=r"maintenance\.lock"):
        store.cleanup_old_data()


def test_required_says_so_when_a_record_is_not_durable(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store(required=True, durable_timeout_seconds=0.2)
    blocker = sqlite3.connect(tmp_path / "store" / "monitor.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError, match="not durable"):
        store.save_event(event(1))
    with pytest.raises(StoreUnavailableError, match="not durable"):
        asyncio.run(store.save_event_async(event(2)))
    blocker.execute("ROLLBACK")
    blocker.close()
    wait_until(lambda: store.health().not_durable == 0, "both are written after all")
    assert [one.timestamp for one in store.get_events()] == [2, 1]


def test_a_read_only_disk(open_store: OpenStore, small_disk: Path) -> None:
    store = open_store(storage_dir=small_disk, durable_timeout_seconds=0.5)
    fill(store, 3)
    store.save_model("m", {"a": 1})
    store.close()
    assert mount("-o", "remount,ro", str(small_disk)) == 0
    store = open_store(storage_dir=small_disk, durable_timeout_seconds=0.5)
    assert store.health().degraded
    fill(store, 2, start=10)
    store.save_event(event(1))
    assert times_of(store) == [0, 1, 2, 10, 11]  # what is on the disk is read all the same
    assert store.load_model("m")[0] == {"a": 1}
    with pytest.raises(RecordNotFoundError):
        store.load_model("other")
    for verb in (store.run_maintenance, store.cleanup_old_data):
        with pytest.raises(StoreUnavailableError):
            verb()
    assert store.acquire_lease("t")
    assert mount("-o", "remount,rw", str(small_disk)) == 0
    wait_until(lambda: store.health().ok, "the store is written again")
    assert times_of(store) == [0, 1, 2, 10, 11]
    store.close()


def fill_up(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(os.urandom(4096))


def test_a_full_disk_loses_nothing_and_recovers_by_itself(open_store: OpenStore, small_disk: Path) -> None:
    store = open_store(storage_dir=small_disk)
    fill(store, 20)
    assert store.flush_all()
    ballast = small_disk / "ballast"
    fill_up(ballast)
    fill(store, 300, start=20)
    record_id = store.save_event(event(1))
    wait_until(lambda: store.health().degraded, "the full disk is noticed")
    assert "full" in store.health().message
    assert len(times_of(store)) == 320
    assert [one.event_id for one in store.get_events()] == [record_id]
    ballast.unlink()
    wait_until(lambda: store.health().ok and not store.health().queued, "the store recovers")
    assert store.is_durable(record_id)
    store.close()
    store = open_store(storage_dir=small_disk)
    assert times_of(store) == list(range(320))
    assert store.health().dropped == {}
    store.close()


# --- damage --------------------------------------------------------------------------------------------


def garbage(data: bytes) -> bytes:
    return b"\xa5" * len(data)


def garbage_inside(data: bytes) -> bytes:
    return data[:4096] + b"\xa5" * (len(data) - 4096)


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def text(_: bytes) -> bytes:
    return b"this is no database, but somebody's notes"


def new_times(store: PersistenceManager) -> list[int]:
    """Without what is recovered of the damaged file in the background."""
    return [time for time in times_of(store) if time >= 100]


@pytest.mark.parametrize("harm", [garbage, garbage_inside, truncated, text])
def test_a_damaged_file_is_set_aside(
    open_store: OpenStore, tmp_path: Path, harm: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store()
    fill(store, 50)
    store.close()
    file = tmp_path / "store" / "monitor.db"
    damaged = harm(file.read_bytes())
    file.write_bytes(damaged)
    with caplog.at_level(logging.ERROR):
        store = open_store()
        fill(store, 3, start=100)
        store.save_event(event(1))
    (aside,) = (path for path in file.parent.iterdir() if ".damaged-" in path.name and path.suffix != ".json")
    assert aside.read_bytes() == damaged
    assert store.health().quarantined == (str(aside),)
    assert not store.health().ok
    assert not store.health().degraded
    assert new_times(store) == [100, 101, 102]
    quarantined = store.get_events("store_quarantined")
    assert [one.data for one in quarantined] == [{"file": str(aside)}]
    assert "damaged" in caplog.text
    store.close()
    store = open_store()
    assert new_times(store) == [100, 101, 102]
    assert store.health().ok


def test_an_empty_file_becomes_a_store(open_store: OpenStore, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "monitor.db").touch()
    store = open_store()
    fill(store, 1)
    store.flush_all()
    assert store.health().ok


def test_damage_found_while_running(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    fill(store, 400)
    store.close()
    file = tmp_path / "store" / "monitor.db"
    store = open_store()
    with file.open("r+b") as handle:  # behind SQLite's back: pages in the middle
        size = handle.seek(0, os.SEEK_END)
        handle.seek(size // 4 // 4096 * 4096)
        handle.write(b"\xa5" * (size // 2))
    store.get_metrics(limit=None)
    wait_until(lambda: store.health().quarantined != (), "the damage is noticed")
    fill(store, 2, start=1000)
    assert store.flush_all()
    assert [time for time in times_of(store) if time >= 1000] == [1000, 1001]


def test_a_file_that_is_taken_away_is_noticed(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    fill(store, 2)
    store.flush_all()
    shutil.rmtree(tmp_path / "store")
    fill(store, 2, start=10)
    wait_until((tmp_path / "store" / "monitor.db").exists, "a new store is made")
    assert store.flush_all()
    assert times_of(store) == [10, 11]
    assert "was removed or replaced" in store.health().message
    (said,) = store.get_events()
    assert said.event_type == "store_replaced"


def test_a_log_that_is_taken_away_is_noticed(open_store: OpenStore, tmp_path: Path) -> None:
    """What is in it is only in a file without a name then, until it is moved into the store."""
    store = open_store()
    first = store.save_event(event(1))
    (tmp_path / "store" / "monitor.db-wal").unlink()
    wait_until(lambda: len(store.get_events()) == 2, "it says so")
    store.save_event(event(2))
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "store", copy)  # as after kill -9
    survivors = open_store(storage_dir=copy).get_events()
    assert {one.event_type for one in survivors} == {"x", "store_log_removed"}
    assert first in {one.event_id for one in survivors}
    assert len(survivors) == 3


def test_an_outage_is_told_when_it_is_over(
    open_store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_monitor.persistence.writer._OUTAGE_WORTH_AN_EVENT_SECONDS", 0.0)
    (tmp_path / "file").touch()
    store = open_store(storage_dir=tmp_path / "file" / "store")
    store.save_metric("custom", "x", 1.0)
    (tmp_path / "file").unlink()
    wait_until(lambda: bool(store.get_events()), "it is over")
    (said,) = store.get_events()
    assert said.event_type == "store_recovered"
    assert "nothing was lost" in said.message


def test_damage_to_one_row_stays_local(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    fill(store, 200)
    store.close()
    with sqlite3.connect(tmp_path / "store" / "monitor.db") as connection:
        row = connection.execute(
            "SELECT id, payload FROM metrics WHERE kind = 2 ORDER BY id LIMIT 1 OFFSET 70"
        ).fetchone()
        connection.execute("UPDATE metrics SET payload = ? WHERE id = ?", (row[1][:-1] + b"?", row[0]))
    connection.close()
    store = open_store()
    kept = times_of(store)
    assert 140 < len(kept) < 200  # what builds on the row is lost with it, up to the next keyframe
    assert kept[-1] == 199
    assert store.health().damaged_rows == 200 - len(kept)
    assert len(store.query_range("x")[0]) == 200


def test_a_damaged_layout_or_series_hides_only_itself(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    fill(store, 10)
    store.save_scrape(Layout([Series("other")]), array("d", [1.0]), timestamp=1.0, target="t")
    store.close()
    with sqlite3.connect(tmp_path / "store" / "monitor.db") as connection:
        connection.execute(
            "UPDATE layouts SET series_ids = replace(series_ids, '1', '2') WHERE length(series_ids) > 99"
        )
        connection.execute("UPDATE series SET metric_name = 'forged' WHERE metric_name = 'x'")
    connection.close()
    store = open_store()
    assert store.query_range("a_total") == []
    assert store.query_range("forged") == []
    assert store.query_range("x") == []
    assert store.query_range("other")[0].values.tolist() == [1.0]
    assert not store.health().ok


# --- faults of ours, floods, locks ---------------------------------------------------------------------


def test_one_item_that_cannot_be_written_does_not_stop_the_others(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(synchronous=True)
    write = SqlStore.write

    def fragile(self: SqlStore, batch: object) -> None:
        if any(sample.time_ms == 7000 for sample in batch.loose):  # type: ignore[attr-defined]  # a Batch
            raise ZeroDivisionError
        write(self, batch)  # type: ignore[arg-type]  # likewise

    monkeypatch.setattr(SqlStore, "write", fragile)
    fill(store, 20)
    record_id = store.save_event(event(1))
    assert store.flush_all()
    assert store.is_durable(record_id)
    assert times_of(store) == list(range(20))
    assert [sample["value"] for sample in store.get_metrics(metric_name="x")] == [
        n for n in range(19, -1, -1) if n != 7
    ]
    assert store.health().dropped == {"unwritable": 1}
    assert "ZeroDivisionError" in store.get_statistics()["last_error"]
    assert "dropped" in caplog.text


def test_memory_is_bounded_while_nothing_can_be_written(
    open_store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_monitor.persistence.pending.MOST_LOOSE_SAMPLES", 100)
    monkeypatch.setattr("vllm_monitor.persistence.samples.sample_verbs.MOST_LOOSE_SAMPLES", 100)
    monkeypatch.setattr("vllm_monitor.persistence.store_access._CROWDED", 50)
    monkeypatch.setattr("vllm_monitor.persistence.pending.MOST_SCRAPE_BYTES", 30_000)
    monkeypatch.setattr("vllm_monitor.persistence.pending.MOST_RARE_RECORDS", 10)
    (tmp_path / "file").touch()
    store = open_store(storage_dir=tmp_path / "file" / "store")
    for number in range(300):
        store.save_metric("custom", "x", number)
        store.enqueue_event(event(number))
    fill(store, 40)
    dropped = store.health().dropped
    assert dropped["records"] == 290
    assert dropped["samples"] >= 200
    assert dropped["scrapes"] == 29  # of 2,700 bytes each
    newest = store.get_metrics(metric_name="x", start_time=1000)
    assert newest[0]["value"] == 299  # the oldest go
    assert store.get_events(limit=1)[0].timestamp == 299


def test_long_texts_are_bounded_by_their_bytes(
    open_store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_monitor.persistence.pending.MOST_LOOSE_TEXT_BYTES", 100_000)
    monkeypatch.setattr("vllm_monitor.persistence.pending.MOST_REQUEST_BYTES", 100_000)
    (tmp_path / "file").touch()
    store = open_store(storage_dir=tmp_path / "file" / "store")
    for number in range(100):
        store.save_metric("custom", "x", number, metadata={"trace": f"{number}" + "y" * 10_000})
        store.save_metric("custom", "y", number, {"path": f"{number}" + "z" * 10_000})
        store.save_request_summary(RequestSummary(timestamp=float(number), error="e" * 10_000))
    assert len(store._pending.loose) <= 10
    assert 0 < len(store.get_requests(limit=None)) < 10
    dropped = store.health().dropped
    assert dropped["samples"] >= 190
    assert dropped["requests"] >= 90
    (tmp_path / "file").unlink()
    wait_until(lambda: store.health().queued == 0, "what is left is written")
    assert store._pending._loose_text_bytes == store._pending._request_bytes == 0


def test_a_lock_that_is_held_for_a_while_is_waited_for(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store(durable_timeout_seconds=0.3)
    blocker = sqlite3.connect(tmp_path / "store" / "monitor.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    fill(store, 5)
    record_id = store.save_checkpoint(StateCheckpoint(1.0, LifecycleState.READY, None, None, {}, {}, {}))
    assert not store.is_durable(record_id)
    assert store.health().not_durable == 1
    wait_until(lambda: "1 records not durable" in store.health().message, "health says so")
    assert len(times_of(store)) == 5
    blocker.execute("ROLLBACK")
    blocker.close()
    wait_until(lambda: store.health().ok and store.is_durable(record_id), "the lock is gone")
    assert len(times_of(store)) == 5


def test_an_uncaught_exception_loses_nothing(tmp_path: Path, open_store: OpenStore) -> None:
    program = f"""
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
store = PersistenceManager(PersistenceConfig(storage_dir={str(tmp_path / "store")!r}))
for number in range(1000):
    store.save_metric("custom", "x", number)
raise SystemError("on purpose")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "on purpose" in done.stderr
    assert len(open_store().get_metrics(limit=None)) == 1000


def test_a_commit_that_fails_is_repeated_whole(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(synchronous=True)
    commit, failures = SqlStore.commit, [OSError("no"), OSError("no"), OSError("no")]

    def unreliable(self: SqlStore) -> None:
        if failures:
            raise failures.pop()
        commit(self)

    monkeypatch.setattr(SqlStore, "commit", unreliable)
    fill(store, 30)  # with names that the store does not know yet
    record_id = store.enqueue_event(event(1))
    assert not store.is_durable(record_id)
    assert store.health().degraded
    while failures:
        assert not store.flush_all()
        assert times_of(store) == list(range(30))
    assert store.flush_all()
    assert store.is_durable(record_id)
    store.close()
    store = open_store()
    assert times_of(store) == list(range(30))
    assert store.query_range("x")[0].values.tolist() == list(range(30))
    assert [one.event_id for one in store.get_events()] == [record_id]
    assert store.health().ok


@pytest.mark.parametrize("column", ["start_ms", "end_ms", "layout_id", "stream_id", "kind", "previous_id"])
def test_a_damaged_column_is_found(open_store: OpenStore, tmp_path: Path, column: str) -> None:
    store = open_store()
    fill(store, 3)
    store.close()
    with sqlite3.connect(tmp_path / "store" / "monitor.db") as connection:
        connection.execute(f"UPDATE metrics SET {column} = {column} + 1 WHERE kind = 3 OR id = 1")  # noqa: S608  # ours
    connection.close()
    store = open_store()
    assert store.get_metrics(metric_name="x") == []
    store.query_range(None)
    assert store.health().damaged_rows > 0
