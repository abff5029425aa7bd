"""check, export, import, retention and sql, as somebody in front of a terminal uses them."""

from __future__ import annotations

import json
import math
import os
import sqlite3
from array import array
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.cli.running import run

from vllm_monitor.clock import SystemClock, make_random
from vllm_monitor.errors import StoreUnavailableError
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager, StorageBackend
from vllm_monitor.records import Event, GuardrailPolicy, Layout, LifecycleState, Series, StateCheckpoint

START = math.floor(SystemClock().now()) - 3600.0
LONG_AGO = START - 60 * 86_400
PAGE = Layout([Series("a_total", (("n", str(number)),)) for number in range(40)])


def fill(
    folder: Path, *, backend: StorageBackend = StorageBackend.HYBRID, start: float = START, scrapes: int = 400
) -> None:
    """A store with noisy scrapes, so that a block fills several pages, and a few records."""
    config = PersistenceConfig(storage_dir=folder, backend=backend, metrics_retention_days=1000)
    with PersistenceManager(config, synchronous=True) as store:
        noise = make_random(1)
        for second in range(scrapes):
            values = array("d", [noise.random() for _ in range(40)])
            store.save_scrape(PAGE, values, timestamp=start + second, target="http://a")
        for number in range(30):
            checkpoint = StateCheckpoint(
                start + number, LifecycleState.SERVING, None, None, {"model": "m" * 200}, {}, {}, target="http://a"
            )
            store.save_checkpoint(checkpoint)
        store.save_event(Event(timestamp=START, event_type="note", message="hello"))
        store.save_guardrails([GuardrailPolicy("g", "d", "x > 1")])
        store.run_maintenance(seal_all=True)


def counts(folder: Path) -> dict[str, Any]:
    statistics = json.loads(run("stats", "--json", "--storage-dir", folder).stdout)
    return {name: number for name, number in statistics["counts"].items() if name not in ("metric_rows", "blocks")}


@pytest.mark.parametrize("backend", list(StorageBackend))
def test_export_and_import_twice(tmp_path: Path, backend: StorageBackend) -> None:
    fill(tmp_path / "one", backend=backend)
    run("export", tmp_path / "archive", "--storage-dir", tmp_path / "one")
    found = []
    for _ in range(2):
        run("import", tmp_path / "archive", "--storage-dir", tmp_path / "two")
        found.append(counts(tmp_path / "two"))
    assert found[0] == found[1]
    assert found[0]["metrics"] == 400 * 40
    assert found[0]["checkpoints"] == 30
    assert run("check", "--storage-dir", tmp_path / "two").stdout.splitlines()[-1].startswith("ok")


def pages_with(path: Path, text: bytes) -> list[int]:
    data = path.read_bytes()
    return [number for number in range(len(data) // 4096) if text in data[number * 4096 : (number + 1) * 4096]]


def test_check_names_what_is_damaged_and_the_store_still_opens(tmp_path: Path) -> None:
    fill(tmp_path / "store")
    path = tmp_path / "store" / "monitor.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        block, payload = connection.execute("SELECT id, payload FROM blocks").fetchone()
        (victim,) = connection.execute(
            "SELECT checkpoint_id FROM checkpoints WHERE timestamp = ?", (START + 7,)
        ).fetchone()
    inside = payload[len(payload) // 2 : len(payload) // 2 + 64]
    (block_page,) = pages_with(path, inside)
    with path.open("r+b") as file:
        file.seek(block_page * 4096)
        file.write(os.urandom(4096))
        data = path.read_bytes()
        file.seek(data.index(victim.encode(), data.index(b"m" * 200)) + 60)
        file.write(os.urandom(16))
    done = run("check", "--storage-dir", tmp_path / "store", check=1)
    assert f"blocks: {block}: http://a metrics" in done.stdout
    assert victim in done.stdout
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path / "store")) as store:
        store.save_event(Event(timestamp=START, event_type="alive", message="still here"))
        assert store.get_events(event_type="alive")


def test_check_in_json(tmp_path: Path) -> None:
    fill(tmp_path / "store")
    report = json.loads(run("check", "--json", "--storage-dir", tmp_path / "store").stdout)
    assert report["ok"]
    assert report["findings"] == []
    assert sum(report["verified"].values()) > 30


def test_retention(tmp_path: Path) -> None:
    fill(tmp_path / "store", start=LONG_AGO, scrapes=2000)
    run("retention", "--storage-dir", tmp_path / "store", check=2)
    report = json.loads(run("retention", "--yes", "--json", "--storage-dir", tmp_path / "store").stdout)
    assert report["bytes_after"] < report["bytes_before"]
    assert counts(tmp_path / "store")["metrics"] == 0


def test_sql(tmp_path: Path) -> None:
    fill(tmp_path / "store")
    where = ("--storage-dir", tmp_path / "store")
    (row,) = run("sql", "SELECT count(*) AS n, min(state) AS s FROM checkpoints", *where, "--json").stdout.splitlines()
    assert json.loads(row) == {"n": 30, "s": "serving"}
    done = run("sql", "SELECT count(*) FROM samples", *where, "--samples", "a_total", "--csv")
    assert done.stdout.splitlines()[1] == "16000"
    assert "serving" in run("sql", "SELECT DISTINCT state FROM checkpoints", *where).stdout
    elsewhere = tmp_path / "elsewhere.db"
    for statement in (
        "DELETE FROM checkpoints",
        "DROP TABLE events",
        "UPDATE events SET data = 1",
        "SELECT nonsense",
        "SELECT * FROM samples",
        f"ATTACH '{elsewhere}' AS other",
        f"VACUUM INTO '{elsewhere}'",
        "PRAGMA query_only=OFF",
    ):
        done = run("sql", statement, *where, check=2)
        assert "hint" in done.stderr
    assert counts(tmp_path / "store")["checkpoints"] == 30
    assert not elsewhere.exists()


@pytest.mark.parametrize("command", [["check"], ["sql", "SELECT 1"], ["export", "x"], ["retention", "--yes"]])
def test_no_store_is_made_by_looking(tmp_path: Path, command: list[str]) -> None:
    done = run(*command, "--storage-dir", tmp_path / "nothing", check=2)
    assert "there is no store" in done.stderr
    assert not (tmp_path / "nothing").exists()


def test_another_layout_is_seen_or_refused(tmp_path: Path) -> None:
    fill(tmp_path / "json", backend=StorageBackend.JSON)
    fill(tmp_path / "sqlite", backend=StorageBackend.SQLITE)
    for name in ("json", "sqlite"):
        before = counts(tmp_path / name)
        run("watch", "http://127.0.0.1:9", "--duration", "0.3", "--json", "--storage-dir", tmp_path / name)
        assert counts(tmp_path / name)["checkpoints"] >= before["checkpoints"]
        with pytest.raises(StoreUnavailableError, match=f"'{name}', not 'hybrid'"):
            PersistenceManager(PersistenceConfig(storage_dir=tmp_path / name, required=True))
    with pytest.raises(StoreUnavailableError, match="'sqlite', not 'json'"):
        PersistenceManager(
            PersistenceConfig(storage_dir=tmp_path / "sqlite", backend=StorageBackend.JSON, required=True)
        )


def test_an_archive_of_another_store_is_left_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        fill(tmp_path / name, scrapes=3)
    run("export", tmp_path / "archive", "--storage-dir", tmp_path / "one")
    run("export", tmp_path / "archive", "--storage-dir", tmp_path / "one")
    before = (tmp_path / "archive" / "manifest.json").read_bytes()
    assert "another store" in run("export", tmp_path / "archive", "--storage-dir", tmp_path / "two", check=1).stderr
    assert (tmp_path / "archive" / "manifest.json").read_bytes() == before


def test_importing_nothing_makes_no_store(tmp_path: Path) -> None:
    run("import", tmp_path / "nothing", "--storage-dir", tmp_path / "store", check=1)
    assert not (tmp_path / "store").exists()


def test_an_import_that_is_refused_leaves_no_store_behind(tmp_path: Path) -> None:
    fill(tmp_path / "store", scrapes=5)
    run("export", tmp_path / "archive", "--storage-dir", tmp_path / "store")
    with (tmp_path / "archive" / "monitor.db").open("r+b") as file:
        file.seek(5_000)
        file.write(b"damage")
    done = run("import", tmp_path / "archive", "--storage-dir", tmp_path / "new", check=1)
    assert "Nothing was imported" in done.stderr
    assert not (tmp_path / "new").exists()


def test_what_happened_as_json_with_its_facts(tmp_path: Path) -> None:
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path / "store")) as store:
        event_id = store.save_event(Event(timestamp=START, event_type="note", message="m", data={"pid": 7}))
    (line,) = run("events", "--json", "--storage-dir", tmp_path / "store").stdout.splitlines()
    assert (json.loads(line)["event_id"], json.loads(line)["data"]) == (event_id, {"pid": 7})


def test_sql_as_json_is_json(tmp_path: Path) -> None:
    fill(tmp_path / "store", scrapes=2)
    done = run("sql", "SELECT 9e999 AS a, 2 AS a", "--json", "--storage-dir", tmp_path / "store")
    assert json.loads(done.stdout, parse_constant=pytest.fail) == {"a": "inf", "a_2": 2}
