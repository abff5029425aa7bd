"""Damaged stores: set aside, replaced at once, and what can be read of them brought back."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.persistence.damaging import (
    OTHER_STORE,
    PAGE_BYTES,
    WIDE,
    add_blocks,
    checkpoint,
    fill,
    overflow_pages,
    payload_of,
    rows_on_pages,
    settle_log,
    write_garbage,
)
from tests.waiting import wait_until

from vllm_monitor.clock import make_random
from vllm_monitor.errors import StoreDamagedError, StoreUnavailableError
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager, StorageBackend
from vllm_monitor.persistence.damage.check import check_store
from vllm_monitor.persistence.damage.rescue import rescue
from vllm_monitor.persistence.damage.rescued_store import LOST_TARGET, RescuedStore
from vllm_monitor.persistence.damage.salvage import reports_in, salvage_file
from vllm_monitor.persistence.damage.set_aside import report_path, waiting_files
from vllm_monitor.persistence.damage.sqlite_log import log_of
from vllm_monitor.persistence.models.model_store import remove_orphans
from vllm_monitor.persistence.open_store import open_store as open_sql_store
from vllm_monitor.persistence.sqlite_file import quarantine
from vllm_monitor.records import GuardrailPolicy

OpenStore = Callable[..., PersistenceManager]


@pytest.fixture(autouse=True)
def _no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else writes to what is set aside here."""
    monkeypatch.setattr("vllm_monitor.persistence.damage.salvager._SETTLE_SECONDS", 0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store with something of everything, closed."""
    folder = tmp_path_factory.mktemp("whole")
    config = PersistenceConfig(storage_dir=folder)
    with PersistenceManager(config) as store:
        fill(store)
    add_blocks(config)
    settle_log(config.db_path)
    return folder


@pytest.fixture
def config(whole: Path, tmp_path: Path) -> PersistenceConfig:
    shutil.copytree(whole, tmp_path / "store")
    return PersistenceConfig(storage_dir=tmp_path / "store")


def set_aside(config: PersistenceConfig) -> Path:
    """Quarantine the store and make a new one."""
    aside = quarantine(config.db_path, 1_000_000)
    open_sql_store(config, 1_000_000).close()
    return aside


def content_of(config: PersistenceConfig) -> dict[str, Any]:
    """Every record and sample, in a form that can be compared."""
    with PersistenceManager(config) as store:
        events = [event for event in store.get_events(limit=None) if not event.event_type.startswith("store_")]
        return {
            "checkpoints": sorted(repr(asdict(one)) for one in store.get_checkpoints(limit=None)),
            "events": sorted(repr(asdict(one)) for one in events),
            "samples": samples_of(store),
        }


def samples_of(store: PersistenceManager) -> set[tuple[Any, ...]]:
    return {
        (series.target, str(series.series), time_ms, value)
        for series in store.query_range(None)
        for time_ms, value in zip(series.timestamps_ms.tolist(), series.values.tolist(), strict=True)
    }


def test_all_of_a_whole_file_comes_back_and_nothing_else(config: PersistenceConfig) -> None:
    before = content_of(config)
    aside = set_aside(config)
    kept = aside.read_bytes()
    report = salvage_file(aside, config, lambda: 2.0)
    assert content_of(config) == before
    assert report.lost_rows == 0
    assert report.found["checkpoints"] == report.found["events"] == 40
    assert report.added["checkpoints"] == 40
    assert report.added["samples"] == len(WIDE) * (30 + 600) + 30
    assert aside.read_bytes() == kept
    assert {path.name for path in aside.parent.glob(f"{aside.name}*")} == {aside.name, report_path(aside).name}
    assert check_store(config).ok
    assert waiting_files(config) == []
    assert reports_in(config) == [report]
    assert "40 checkpoints" in report.summary()
    with closing(sqlite3.connect(config.db_path)) as connection:
        origins = {name for (name,) in connection.execute("SELECT store_id FROM origins")}
    assert {OTHER_STORE, report.store_id} <= origins


def test_doing_it_again_adds_nothing(config: PersistenceConfig) -> None:
    aside = set_aside(config)
    salvage_file(aside, config, lambda: 2.0)
    before = content_of(config)
    report_path(aside).unlink()
    again = salvage_file(aside, config, lambda: 3.0)
    assert again.added == {}
    assert again.summary() == "nothing new"
    assert content_of(config) == before


def test_an_interrupted_salvage_is_completed(config: PersistenceConfig) -> None:
    before = content_of(config)
    aside = set_aside(config)
    for most in (0, 4):
        steps = 0

        def stop(_done: int, _total: int, _what: str, most: int = most) -> None:
            nonlocal steps
            steps += 1
            if steps > most:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            salvage_file(aside, config, lambda: 2.0, advance=stop)
        assert waiting_files(config) == [aside]
        assert sorted(path.name for path in aside.parent.glob("*.rescued*")) == []
    salvage_file(aside, config, lambda: 2.0)
    assert content_of(config) == before


def test_a_store_that_is_replaced_meanwhile_gets_it_after_all(config: PersistenceConfig) -> None:
    before = content_of(config)
    aside = set_aside(config)

    def replace(_done: int, _total: int, what: str) -> None:
        if what == "events":
            config.db_path.unlink()

    with pytest.raises(StoreDamagedError, match="replaced"):
        salvage_file(aside, config, lambda: 2.0, advance=replace)
    assert waiting_files(config) == [aside]
    for path in config.storage_dir.glob("monitor.db-*"):
        path.unlink()
    open_sql_store(config, 1_000_000).close()
    salvage_file(aside, config, lambda: 2.0)
    assert content_of(config) == before


@settings(max_examples=8)
@given(st.data())
def test_whatever_is_destroyed_only_true_things_come_back(whole: Path, data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        config = PersistenceConfig(storage_dir=Path(folder) / "store")
        shutil.copytree(whole, config.storage_dir)
        truth = rescued_rows(config.db_path, Path(folder), config)
        size = config.db_path.stat().st_size
        random = make_random(data.draw(st.integers(0, 1 << 30)))
        content = bytearray(config.db_path.read_bytes())
        for _ in range(data.draw(st.integers(1, 12))):
            at = random.randrange(size)
            length = random.choice([1, 16, 300, PAGE_BYTES, 10 * PAGE_BYTES])
            content[at : at + length] = random.randbytes(min(length, size - at))
        del content[data.draw(st.integers(size // 2, size)) :]
        config.db_path.write_bytes(content)
        found = rescued_rows(config.db_path, Path(folder), config)
        for table, rows in found.items():
            if table not in ("targets", "streams", "origins"):  # these have no checksum
                assert rows <= truth[table], table


def rescued_rows(damaged: Path, folder: Path, config: PersistenceConfig) -> dict[str, set[Any]]:
    rescued = RescuedStore(folder / "rescued.db", config)
    rescue(damaged, rescued)
    rescued.finish("x")
    with closing(sqlite3.connect(rescued.path)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            name: set(connection.execute(f"SELECT * FROM {name}"))  # noqa: S608  # ours
            for name in names
            if name in rescued.found
        }


def test_a_fact_that_is_no_text_any_more_is_left_out(whole: Path, tmp_path: Path) -> None:
    config = PersistenceConfig(storage_dir=tmp_path / "store")
    shutil.copytree(whole, config.storage_dir)
    content = config.db_path.read_bytes()
    at = content.index(b"created_at") + len(b"created_at")
    config.db_path.write_bytes(content[:at] + b"\xff\xfe" + content[at + 2 :])
    found = rescued_rows(config.db_path, tmp_path, config)
    assert "created_at" not in {key for key, _ in found["store_meta"]}
    assert found["checkpoints"]


def test_what_was_sealed_comes_back_with_its_roll_ups(open_store: OpenStore) -> None:
    store = open_store()
    fill(store, records=5, scrapes=200)
    store.run_maintenance(seal_all=True)
    fill(store, records=0, scrapes=20)
    config = store.config
    store.close()
    settle_log(config.db_path)
    before, report = content_of(config), check_store(config)
    assert report.ok
    assert report.verified["blocks"] >= 2
    assert report.verified["rollups"] >= 2
    no_header(config.db_path)
    salvage_file(set_aside(config), config, lambda: 2.0)
    assert content_of(config) == before
    after = check_store(config)
    assert after.ok
    assert after.verified["rollups"] >= report.verified["rollups"]


@pytest.mark.parametrize("backend", [StorageBackend.SQLITE, StorageBackend.HYBRID])
def test_documents_and_models_come_back(open_store: OpenStore, backend: StorageBackend) -> None:
    store = open_store(backend=backend)
    policies = [GuardrailPolicy(name=f"g{number}", description="d", condition="1 > 0") for number in (1, 2)]
    store.save_guardrails(policies)
    store.save_model("m", {"weights": np.arange(5000.0)})
    store.save_model("m", {"weights": np.arange(6000.0)})
    store.save_model("small", {"a": 1})
    store.close()
    settle_log(store.config.db_path)
    for path in (store.config.storage_dir / "models").glob("*"):
        os.utime(path, (0, 0))  # so old that without its row it would be an orphan
    no_header(store.config.db_path)
    aside = quarantine(store.config.db_path, 1_000_000)
    new = open_sql_store(store.config, 1_000_000)
    assert remove_orphans(new, store.config) == 0
    new.close()
    report = salvage_file(aside, store.config, lambda: 2.0)
    assert report.added["models"] == 3
    assert report.added.get("guardrails") == (2 if backend is StorageBackend.SQLITE else None)
    report_path(aside).unlink()
    assert salvage_file(aside, store.config, lambda: 2.0).added == {}
    store = open_store(backend=backend)
    assert store.load_guardrails() == policies
    assert store.load_model("m")[0]["weights"].tolist() == list(range(6000))
    assert store.load_model("m", 1)[0]["weights"].tolist() == list(range(5000))
    assert store.load_model("small")[0] == {"a": 1}
    assert check_store(store.config).ok


# --- what was destroyed ----------------------------------------------------------------------------------


def no_header(path: Path) -> None:
    write_garbage(path, 1)


def no_trees(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for page in range(len(data) // PAGE_BYTES):
        if page == 0 or data[page * PAGE_BYTES] in (2, 5, 10):
            data[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = b"\xa5" * PAGE_BYTES
    path.write_bytes(data)


def test_without_header_schema_or_trees_everything_comes_back(config: PersistenceConfig) -> None:
    before = content_of(config)
    no_trees(config.db_path)
    salvage_file(set_aside(config), config, lambda: 2.0)
    assert content_of(config) == before


def test_a_page_of_a_block_and_a_checkpoint_cost_only_themselves(config: PersistenceConfig) -> None:
    before = content_of(config)
    rows = rows_on_pages(config.db_path, "checkpoints")
    page = rows[20][0].page
    lost = {str(row["checkpoint_id"]) for place, row in rows if place.page == page}
    write_garbage(config.db_path, page)
    write_garbage(config.db_path, list(overflow_pages(config.db_path, payload_of(config.db_path, "blocks", 2)))[3])
    report = salvage_file(set_aside(config), config, lambda: 2.0)
    after = content_of(config)
    assert after["events"] == before["events"]
    assert len(after["checkpoints"]) == 40 - len(lost)
    assert len(before["samples"]) - len(after["samples"]) == 200 * len(WIDE)
    assert after["samples"] < before["samples"]
    assert report.lost_rows >= 1


def test_names_that_only_an_index_remembers(config: PersistenceConfig) -> None:
    before = content_of(config)
    for table in ("targets", "streams", "origins"):
        write_garbage(config.db_path, rows_on_pages_of(config, table))
    report = salvage_file(set_aside(config), config, lambda: 2.0)
    assert content_of(config) == before
    assert report.found["streams"] == 3


def rows_on_pages_of(config: PersistenceConfig, table: str) -> int:
    with closing(sqlite3.connect(config.db_path)) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        return int(connection.execute(query, (table,)).fetchone()[0])


def test_samples_whose_target_is_lost_are_kept_under_another_name(config: PersistenceConfig) -> None:
    before = content_of(config)
    for table in ("targets", "streams", "sqlite_autoindex_targets_1", "ix_streams_target_id_source"):
        write_garbage(config.db_path, rows_on_pages_of(config, table))
    salvage_file(set_aside(config), config, lambda: 2.0)
    after = content_of(config)
    assert after["checkpoints"] == before["checkpoints"]
    assert all(target.startswith(LOST_TARGET) for target, *_ in after["samples"])
    assert sorted(one[1:] for one in after["samples"]) == sorted(one[1:] for one in before["samples"])


def test_a_name_that_was_forged_is_not_believed(config: PersistenceConfig) -> None:
    data = config.db_path.read_bytes()
    config.db_path.write_bytes(data.replace(b"custommine{}", b"customfake{}"))
    report = salvage_file(set_aside(config), config, lambda: 2.0)
    assert report.lost_rows == 1
    assert report.found["series"] == len(WIDE)


# --- the monitor starts, whatever lies there -------------------------------------------------------------


def test_the_monitor_starts_and_recovers_in_the_background(open_store: OpenStore, config: PersistenceConfig) -> None:
    before = content_of(config)
    no_header(config.db_path)
    store = open_store()
    (aside,) = store.health().quarantined
    assert not store.health().degraded
    store.save_metric("custom", "new", 1.0)
    wait_until(lambda: "Recovered" in store.health().hint, "it is salvaged")
    assert "40 checkpoints" in store.health().hint
    wait_until(lambda: store.get_events("store_salvaged"), "the event is there")
    (event,) = store.get_events("store_salvaged")
    assert event.data["added"]["checkpoints"] == 40
    assert event.data["file"] == aside
    assert before["samples"] < samples_of(store)
    assert {repr(asdict(one)) for one in store.get_checkpoints(limit=None)} == set(before["checkpoints"])
    assert json.loads(report_path(Path(aside)).read_bytes())["added"]["checkpoints"] == 40
    assert report_path(Path(aside)).stat().st_mode & 0o777 == 0o600
    store.close()
    store = open_store()
    assert store.health().ok
    assert len(store.get_events("store_salvaged")) == 1


def test_what_one_process_left_undone_the_next_one_does(open_store: OpenStore, config: PersistenceConfig) -> None:
    set_aside(config)
    store = open_store()
    wait_until(lambda: len(store.get_checkpoints(limit=None)) == 40, "it is salvaged")
    wait_until(lambda: waiting_files(config) == [], "and done with")


def test_only_one_manager_salvages(open_store: OpenStore, config: PersistenceConfig) -> None:
    no_header(config.db_path)
    stores = [open_store() for _ in range(3)]
    wait_until(lambda: waiting_files(config) == [], "it is salvaged")
    wait_until(lambda: stores[2].get_events("store_salvaged"), "and said by whoever did it")
    wait_until(lambda: len(stores[1].get_events("store_salvaged")) == 1, "and everybody knows")
    assert len(stores[2].get_events("store_salvaged")) == 1
    assert len(stores[2].get_checkpoints(limit=None)) == 40


def test_a_synchronous_manager_salvages_before_it_goes_on(open_store: OpenStore, config: PersistenceConfig) -> None:
    no_header(config.db_path)
    store = open_store(synchronous=True)
    assert len(store.get_checkpoints(limit=None)) == 40
    assert len(store.get_events("store_salvaged")) == 1


def test_the_acceptance(open_store: OpenStore, config: PersistenceConfig) -> None:
    rows = rows_on_pages(config.db_path, "checkpoints")
    write_garbage(config.db_path, rows[20][0].page)
    write_garbage(config.db_path, list(overflow_pages(config.db_path, payload_of(config.db_path, "blocks", 2)))[3])
    findings = check_store(config).findings
    assert any(one.where == "blocks" and one.name.startswith("2: t sealed") for one in findings)
    assert any(one.where == "checkpoints" and one.name == rows[20][1]["checkpoint_id"] for one in findings)
    store = open_store()
    store.save_checkpoint(checkpoint(100))
    store.get_checkpoints(limit=None)  # reads the page, which is how the damage is met
    wait_until(lambda: "Recovered" in store.health().hint, "it is set aside and salvaged")
    kept = {one.checkpoint_id for one in store.get_checkpoints(limit=None)}
    assert "checkpoint-100" in kept
    assert 20 < len(kept) < 41
    assert check_store(config).ok


def logged(config: PersistenceConfig, folder: Path) -> PersistenceConfig:
    """A copy of a live store whose newest half is in its log alone."""
    with PersistenceManager(config) as store:
        store.flush_all()
        for number in range(60):
            store.save_checkpoint(checkpoint(1000 + number))
        shutil.copytree(config.storage_dir, folder)
    return PersistenceConfig(storage_dir=folder)


def test_garbage_in_the_log(open_store: OpenStore, config: PersistenceConfig, tmp_path: Path) -> None:
    copy = logged(config, tmp_path / "copy")
    log = bytearray(log_of(copy.db_path).read_bytes())
    frame = 24 + PAGE_BYTES
    middle = 32 + len(log) // frame // 2 * frame
    log[middle + 100 : middle + 200] = b"\xa5" * 100
    log_of(copy.db_path).write_bytes(log)
    store = open_store(storage_dir=copy.storage_dir)
    assert store.health().quarantined
    # Of a row on the destroyed page the next image of the page has a copy, or else it is lost.
    wait_until(lambda: len(store.get_checkpoints(limit=None)) >= 99, "both sides of the damage are recovered")


def test_a_log_without_its_store(open_store: OpenStore, config: PersistenceConfig, tmp_path: Path) -> None:
    copy = logged(config, tmp_path / "copy")
    copy.db_path.unlink()
    store = open_store(storage_dir=copy.storage_dir)
    assert store.health().quarantined
    wait_until(lambda: len(store.get_checkpoints(limit=None)) >= 60, "what the log has is recovered")


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"somebody's notes", b"\xa5" * 50_000], ids=len)
def test_what_is_no_store_holds_nothing(open_store: OpenStore, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "monitor.db").write_bytes(content)
    store = open_store()
    store.save_checkpoint(checkpoint(1))
    assert not store.health().degraded
    if content:
        wait_until(lambda: "nothing new" in store.health().hint, "there is nothing to recover")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_left_alone(open_store: OpenStore, tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "store").mkdir()
    path = tmp_path / "store" / "monitor.db"
    make(path)
    with pytest.raises(StoreUnavailableError, match="is no file"):
        open_store(required=True)
    store = open_store()
    store.save_checkpoint(checkpoint(1))
    assert store.health().degraded
    assert "Move what is in its place away" in store.health().hint
    path.rmdir() if path.is_dir() else path.unlink()
    wait_until(lambda: store.health().ok, "it recovers by itself")
    assert store.is_durable("checkpoint-1")


def test_opening_a_store_again_keeps_the_locks_of_this_process(open_store: OpenStore, tmp_path: Path) -> None:
    first = open_store()
    first.save_checkpoint(checkpoint(1))
    open_store().close()
    log = log_of(first.config.db_path)
    number = log.stat().st_ino
    # Another process that opens and closes the store must see that we still use it, and leave the log alone.
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM events'); c.close()"
    subprocess.run([sys.executable, "-c", code, str(first.config.db_path)], check=True)
    assert log.stat().st_ino == number
