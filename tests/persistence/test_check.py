"""The store's own check: nothing found in a whole store, every damaged thing named in a damaged one."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.persistence.damaging import (
    add_blocks,
    checkpoint,
    fill,
    overflow_pages,
    payload_of,
    rows_on_pages,
    settle_log,
    write_garbage,
)

from vllm_monitor.errors import StoreTooNewError, StoreUnavailableError
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager, StorageBackend
from vllm_monitor.persistence.damage.check import CheckReport, check_store
from vllm_monitor.persistence.damage.sqlite_log import log_of
from vllm_monitor.persistence.models.model_store import ModelStore
from vllm_monitor.records import GuardrailPolicy

OpenStore = Callable[..., PersistenceManager]


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
    """A copy of it, to harm."""
    shutil.copytree(whole, tmp_path / "store")
    return PersistenceConfig(storage_dir=tmp_path / "store")


def found(report: CheckReport, where: str) -> list[str]:
    return [finding.name for finding in report.findings if finding.where == where]


def change(config: PersistenceConfig, statement: str) -> None:
    with closing(sqlite3.connect(config.db_path)) as connection:
        connection.execute(statement)
        connection.commit()


def test_a_whole_store_is_ok_and_untouched(config: PersistenceConfig) -> None:
    before = {path.name: path.read_bytes() for path in config.storage_dir.iterdir() if path.is_file()}
    steps: list[tuple[int, int, str]] = []
    report = check_store(config, progress=lambda *step: steps.append(step))
    assert (report.ok, report.findings, report.left_out) == (True, (), 0)
    assert report.verified["checkpoints"] == report.verified["events"] == 40
    assert report.verified["blocks"] == 3
    assert report.verified["rollups"] >= 3
    assert report.verified["metrics"] >= 31
    assert report.verified["series"] == 41
    assert steps[-1][0] == steps[-1][1] == sum(report.verified.values())
    assert asdict(report)["ok"] is True
    after = {path.name: path.read_bytes() for path in config.storage_dir.iterdir() if path.is_file()}
    assert {name: after[name] for name in before} == before


def test_it_runs_beside_a_live_writer(open_store: OpenStore) -> None:
    store = open_store()
    fill(store)
    report = check_store(store.config)
    assert report.ok
    assert report.verified["checkpoints"] == 40
    fill(store, records=0)
    assert check_store(store.config).ok


def test_a_version_that_becomes_too_old_meanwhile_is_no_damage(
    open_store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(model_versions_kept=2)
    for _ in range(2):
        store.save_model("m", np.arange(3.0))
    read_file = ModelStore.file_arrays
    left_to_save = [np.arange(4.0)]

    def read_late(models: ModelStore, row: Mapping[str, Any]) -> bytes:
        if left_to_save:  # the writer is faster than whoever looks: the oldest version goes
            store.save_model("m", left_to_save.pop())
        return read_file(models, row)

    monkeypatch.setattr(ModelStore, "file_arrays", read_late)
    report = check_store(store.config)
    assert report.ok, report.findings
    assert report.verified["model files"] == 1
    left_to_save += [np.arange(5.0), np.arange(6.0)]
    exported = store.export_data(tmp_path / "archive")
    assert not left_to_save
    assert exported.damaged == 0


def test_garbage_over_a_page_of_a_block_names_the_block(config: PersistenceConfig) -> None:
    pages = list(overflow_pages(config.db_path, payload_of(config.db_path, "blocks", 2)))
    assert len(pages) > 5
    for page in (pages[3], pages[-1]):
        write_garbage(config.db_path, page)
        report = check_store(config)
        assert not report.ok
        assert found(report, "blocks") == ["2: t sealed, 2030-03-17T17:50:01.000Z to 2030-03-17T17:53:20.000Z"]
        assert report.verified["blocks"] == 2


def test_garbage_over_the_leaf_page_of_checkpoints_names_every_one(config: PersistenceConfig) -> None:
    rows = rows_on_pages(config.db_path, "checkpoints")
    page = rows[20][0].page
    lost = sorted(str(row["checkpoint_id"]) for place, row in rows if place.page == page)
    assert 1 < len(lost) < 40
    write_garbage(config.db_path, page)
    report = check_store(config)
    assert sorted(found(report, "checkpoints")) == lost
    assert report.verified["checkpoints"] == 40 - len(lost)
    assert report.verified["events"] == 40


def test_bytes_inside_the_row_of_a_checkpoint_name_it(config: PersistenceConfig) -> None:
    data = bytearray(config.db_path.read_bytes())
    at = data.index(b'"number":17')
    data[at - 100 : at - 80] = b"\xa5" * 20
    config.db_path.write_bytes(data)
    assert found(check_store(config), "checkpoints") == ["checkpoint-17"]


def test_a_damaged_id_does_not_hide_which_record_it_was(config: PersistenceConfig) -> None:
    data = config.db_path.read_bytes()
    # The row in the table is followed by its target; the entry of the index is not.
    config.db_path.write_bytes(data.replace(b"checkpoint-33t", b"checkpoint-99t"))
    assert found(check_store(config), "checkpoints") == ["checkpoint-33"]


def test_a_row_that_its_page_no_longer_counts_is_named(config: PersistenceConfig) -> None:
    rows = rows_on_pages(config.db_path, "checkpoints")
    page = rows[20][0].page
    last = [str(row["checkpoint_id"]) for place, row in rows if place.page == page][-1]
    with config.db_path.open("r+b") as file:  # one cell less in the header of the page: nothing fails to be read
        file.seek((page - 1) * 4096 + 3)
        count = int.from_bytes(file.read(2), "big")
        file.seek((page - 1) * 4096 + 3)
        file.write((count - 1).to_bytes(2, "big"))
    report = check_store(config)
    assert found(report, "checkpoints") == [last]
    assert report.verified["checkpoints"] == 39


def test_a_destroyed_root_page_leaves_all_named(config: PersistenceConfig) -> None:
    with closing(sqlite3.connect(config.db_path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'checkpoints'").fetchone()
    write_garbage(config.db_path, page)
    report = check_store(config)
    assert len(set(found(report, "checkpoints"))) == 40
    assert report.verified["events"] == 40


def test_a_destroyed_index_is_named_and_loses_nothing(config: PersistenceConfig) -> None:
    with closing(sqlite3.connect(config.db_path)) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'ix_checkpoints_timestamp'"
        (page,) = connection.execute(query).fetchone()
    write_garbage(config.db_path, page)
    report = check_store(config)
    assert not report.ok
    assert found(report, "database")
    assert report.verified["checkpoints"] == 40


@pytest.mark.parametrize(
    ("statement", "where", "name"),
    [
        ("UPDATE metrics SET checksum = checksum + 1 WHERE kind = 3", "metrics", "t single samples"),
        ("UPDATE layouts SET series_ids = '[1,2]'", "layouts", ""),
        ("UPDATE series SET metric_name = 'forged' WHERE id = 3", "series", ""),
        ("UPDATE blocks SET tier = 1 WHERE id = 1", "blocks", "1: t sealed"),
        ("UPDATE events SET message = 'forged' WHERE event_id = 'e5'", "events", "e5"),
        ("UPDATE store_meta SET value = 'forged' WHERE key = 'store_id'", "store_meta", "store_id"),
        ("UPDATE streams SET target_id = 0 WHERE id = 1", "streams", "0"),
    ],
)
def test_a_changed_row_is_named(config: PersistenceConfig, statement: str, where: str, name: str) -> None:
    change(config, statement)
    names = found(check_store(config), where)
    assert names
    assert all(name in one for one in names) or where == "metrics"


def test_a_missing_layout_makes_its_blocks_unreadable(config: PersistenceConfig) -> None:
    change(config, "DELETE FROM layouts")
    report = check_store(config)
    assert len(found(report, "blocks")) == 3
    assert len(found(report, "metrics")) == 30


def test_a_lost_row_takes_those_that_build_on_it_along(config: PersistenceConfig) -> None:
    change(config, "DELETE FROM metrics WHERE kind = 1")
    assert len(found(check_store(config), "metrics")) == 29


def test_findings_are_bounded(config: PersistenceConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_monitor.persistence.damage.check.MOST_FINDINGS_PER_TABLE", 10)
    change(config, "UPDATE checkpoints SET checksum = 'x'")
    report = check_store(config)
    assert len(found(report, "checkpoints")) == 10
    assert report.left_out == 30


def test_what_is_no_database_is_said(config: PersistenceConfig) -> None:
    write_garbage(config.db_path, 1)
    (finding,) = check_store(config).findings
    assert (finding.where, finding.name) == ("database", "monitor.db")
    assert "start the monitor" in finding.problem


def test_damage_in_the_log_is_said(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    for _ in range(3):
        fill(store, scrapes=1, records=1)
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / "monitor.db"
    shutil.copy(store.config.db_path, copy)
    log = bytearray(log_of(store.config.db_path).read_bytes())
    log[5000:5100] = b"\xa5" * 100
    log_of(copy).write_bytes(log)
    assert found(check_store(PersistenceConfig(storage_dir=copy.parent)), "log") == ["monitor.db-wal"]


def with_documents_and_models(store: PersistenceManager) -> None:
    store.save_guardrails([GuardrailPolicy(name=f"g{number}", description="d", condition="1 > 0") for number in (1, 2)])
    store.save_model("m", {"weights": np.arange(5000.0)})
    store.save_model("small", {"a": 1})


@pytest.mark.parametrize("backend", [StorageBackend.SQLITE, StorageBackend.HYBRID])
def test_documents_and_models_are_verified(open_store: OpenStore, backend: StorageBackend) -> None:
    store = open_store(backend=backend)
    with_documents_and_models(store)
    store.close()
    config = store.config
    report = check_store(config)
    assert report.ok
    assert report.verified["models"] == 2
    in_files = backend is StorageBackend.HYBRID
    assert report.verified["guardrails" if in_files else "documents"] == 2
    if in_files:
        (arrays,) = (config.storage_dir / "models").iterdir()
        arrays.write_bytes(arrays.read_bytes()[:-1] + b"?")
        guardrails = config.storage_dir / "guardrails.json"
        guardrails.write_text(guardrails.read_text()[:-20])
        report = check_store(config)
        assert found(report, "model files") == [arrays.name]
        assert found(report, "guardrails") == ["guardrails.json"]
        arrays.unlink()
        assert found(check_store(config), "model files") == [arrays.name]
    else:
        change(config, "UPDATE documents SET content = '{}' WHERE name = 'g2'")
        change(config, "UPDATE models SET arrays = zeroblob(40000) WHERE model_name = 'm'")
        report = check_store(config)
        assert found(report, "documents") == ["guardrails g2"]
        assert found(report, "models") == ["m 1"]


def test_lines_of_the_json_backend_are_verified(open_store: OpenStore) -> None:
    store = open_store(backend=StorageBackend.JSON)
    for number in range(5):
        store.save_checkpoint(checkpoint(number))
    store.close()
    report = check_store(store.config)
    assert report.ok
    assert report.verified["lines"] >= 5
    (lines,) = (path for path in store.config.storage_dir.glob("*.jsonl") if b"checkpoint-3" in path.read_bytes())
    lines.write_bytes(lines.read_bytes().replace(b'"number":3', b'"number":4'))
    report = check_store(store.config)
    assert [name for name in found(report, "lines") if name.endswith(lines.name)]


def test_what_cannot_be_checked_is_an_error(config: PersistenceConfig, tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match="no store"):
        check_store(PersistenceConfig(storage_dir=tmp_path / "nothing"))
    change(config, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreTooNewError):
        check_store(config)
    config.db_path.unlink()
    with closing(sqlite3.connect(config.db_path)) as connection:
        connection.execute("CREATE TABLE foreign_to_us (x)")
    with pytest.raises(StoreUnavailableError, match="not a store"):
        check_store(config)
