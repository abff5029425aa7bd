"""The lines of the JSON backend that say what the values of others are of: no small damage loses them."""

from __future__ import annotations

import time
from array import array
from pathlib import Path

import pytest

from vllm_monitor.persistence import PersistenceConfig, PersistenceManager, StorageBackend
from vllm_monitor.records import Layout, MetricKind, Series

PAGE = Layout([Series(name, (("engine", "0"),), MetricKind.COUNTER) for name in ("a_total", "b_total", "c_total")])
HOST = "http://127.0.0.1:8000"
BASE = time.time() // 60 * 60 - 3600  # young enough for retention


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def opened(folder: Path) -> PersistenceManager:
    return PersistenceManager(PersistenceConfig(storage_dir=folder, backend=StorageBackend.JSON), synchronous=True)


@pytest.mark.parametrize("backend", [StorageBackend.HYBRID, StorageBackend.JSON])
def test_no_small_damage_loses_what_a_layout_is(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, backend: StorageBackend
) -> None:
    """Of samples that were saved here, and of imported ones."""
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path / "first", backend=backend)) as first:
        for number in range(300):
            first.save_scrape(PAGE, array("d", [number, 1.0, 2.0]), timestamp=BASE + number, target=HOST)
        first.export_data(tmp_path / "archive")
    name = "samples.jsonl"
    if backend is not StorageBackend.JSON:
        name = "imported.jsonl"
        with opened(folder) as store:
            store.import_data(tmp_path / "archive")
        (folder / "rollups.jsonl").unlink()  # it says so, too
    path = (folder if name == "imported.jsonl" else tmp_path / "first") / name
    lines = path.read_bytes().splitlines(keepends=True)
    definitions = [at for at, line in enumerate(lines) if b'"series"' in line]
    assert len(definitions) == 4
    for at in definitions[:3]:
        lines[at] = b"garbage\n"
    path.write_bytes(b"".join(lines))
    caplog.clear()
    with opened(path.parent) as store:
        assert len(store.query_range("a_total")[0]) == 300
        assert str(store.get_events(event_type="store_quarantined")[0].message).endswith("are kept and in use.")
    (told,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert told.getMessage().startswith(f"3 lines of {path} were set aside")


def test_a_layout_is_known_from_another_file(folder: Path, tmp_path: Path) -> None:
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path / "first")) as first:
        for number in range(3):
            first.save_scrape(PAGE, array("d", [number, 1.0, 2.0]), timestamp=BASE + number, target=HOST)
        first.export_data(tmp_path / "archive")
    with opened(folder) as store:
        store.import_data(tmp_path / "archive")
    path = folder / "imported.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert b'"series"' in lines[0]
    path.write_bytes(b"".join([b"garbage\n", *lines[1:]]))
    with opened(folder) as store:
        assert len(store.query_range("a_total")[0]) == 3
