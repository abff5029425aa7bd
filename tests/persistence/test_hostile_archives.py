"""An archive may come from an enemy: it is refused as a whole, and nothing in it runs or leaves its folder."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import shutil
import sqlite3
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vllm_monitor.errors import ArchiveError, StorageError, StoreTooNewError
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.persistence.models.model_store import model_checksum
from vllm_monitor.persistence.records.rare_kinds import ALL_KINDS
from vllm_monitor.records import Event, FailurePattern, GuardrailPolicy, Layout, PluginRecord, Series

OpenStore = Callable[..., PersistenceManager]
_PROOF = "import pathlib; pathlib.Path('ran').touch()"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with something of everything that an enemy could change."""
    folder = tmp_path_factory.mktemp("original")
    with PersistenceManager(PersistenceConfig(storage_dir=folder / "store"), synchronous=True) as store:
        layout = Layout([Series("vllm:x"), Series("vllm:y")])
        for number in range(20):
            store.save_scrape(layout, array("d", [number, 0.5]), timestamp=1e9 + number, target="http://t")
            store.save_metric("custom", "mine", number, timestamp=1e9 + number)
        store.save_event(Event(timestamp=1e9, event_type="e", message="m"))
        store.save_failure_pattern(FailurePattern(pattern_id="f", timestamp=1e9, failure_type="x", last_seen=2e9))
        store.save_learning_data("bandit", {"text": "x" * 9000}, "restart", 1.0)
        store.save_guardrails([GuardrailPolicy("g", "d", "x > 1")])
        store.save_plugins([PluginRecord("p", "collector", _PROOF)])
        store.save_model("m", {"weights": np.arange(100.0)})
        store.export_data(folder / "archive")
    return folder / "archive"


@pytest.fixture
def archive(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "archive"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PersistenceManager]:
    """An empty store, which every test leaves empty."""
    config = PersistenceConfig(storage_dir=tmp_path_factory.mktemp("store"))
    with PersistenceManager(config, synchronous=True) as manager:
        yield manager


def _refused(store: PersistenceManager, archive: Path, match: str, error: type[StorageError] = ArchiveError) -> None:
    before = store.get_statistics()["counts"]
    assert not any(before.values())
    with pytest.raises(error, match=match) as raised:
        store.import_data(archive)
    assert raised.value.hint
    assert store.get_statistics()["counts"] == before
    assert not store.load_plugins()
    assert not store.load_guardrails()
    assert not store.list_models()


def _manifest(archive: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((archive / "manifest.json").read_text())
    return facts


def _write_manifest(archive: Path, facts: dict[str, Any]) -> None:
    (archive / "manifest.json").write_text(json.dumps(facts))


def _seal(archive: Path) -> None:
    """Make the manifest fit the files, as an enemy would."""
    facts = _manifest(archive)
    for entry in facts["files"]:
        data = (archive / entry["name"]).read_bytes()
        entry |= {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    _write_manifest(archive, facts)


def _change_database(archive: Path, *statements: str, parameters: tuple[Any, ...] = ()) -> None:
    with closing(sqlite3.connect(archive / "monitor.db", isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement, parameters)
    _seal(archive)


def test_what_was_not_changed_is_imported_untrusted_and_never_run(
    open_store: OpenStore, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store()
    store.import_data(archive)
    plugin = store.load_plugins()["p"]
    assert plugin.source == _PROOF
    assert not (tmp_path / "ran").exists()
    trust_file = store.config.trust_file
    assert trust_file is None or not trust_file.exists()


def test_the_checksum_of_a_plugin_is_not_taken_from_the_archive(open_store: OpenStore, archive: Path) -> None:
    store = open_store()
    facts = json.loads((archive / "plugins.json").read_text())
    facts["entries"]["p"] |= {"source": "evil()", "sha256": hashlib.sha256(_PROOF.encode()).hexdigest()}
    (archive / "plugins.json").write_text(json.dumps(facts))
    _seal(archive)
    store.import_data(archive)
    assert store.load_plugins()["p"].sha256 == hashlib.sha256(b"evil()").hexdigest()


@pytest.mark.parametrize(
    "name", ["../evil.db", "/etc/passwd", "models/../../x.safetensors", "models/a/b.safetensors", "evil.py", "", "."]
)
def test_names_that_leave_the_folder(store: PersistenceManager, archive: Path, name: str) -> None:
    facts = _manifest(archive)
    facts["files"].append({"name": name, "size_bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()})
    _write_manifest(archive, facts)
    _refused(store, archive, "no archive holds")


def test_a_file_that_the_manifest_does_not_list(store: PersistenceManager, archive: Path) -> None:
    (archive / "models" / "more.safetensors").write_bytes(b"x")
    _refused(store, archive, r"more\.safetensors.*does not list")


@pytest.mark.parametrize("name", ["monitor.db", "plugins.json", "manifest.json"])
def test_links_are_not_followed(store: PersistenceManager, archive: Path, tmp_path: Path, name: str) -> None:
    (archive / name).rename(tmp_path / "elsewhere")
    (archive / name).symlink_to(tmp_path / "elsewhere")
    _refused(store, archive, "no plain file|cannot be read")


def test_a_folder_of_models_that_is_a_link(store: PersistenceManager, archive: Path, tmp_path: Path) -> None:
    (archive / "models").rename(tmp_path / "elsewhere")
    (archive / "models").symlink_to(tmp_path / "elsewhere")
    _refused(store, archive, "no plain file")


@pytest.mark.parametrize("name", ["plugins.json", "manifest.json"])
def test_a_pipe_is_not_waited_for(store: PersistenceManager, archive: Path, name: str) -> None:
    (archive / name).unlink()
    os.mkfifo(archive / name)
    _refused(store, archive, "no plain file")


def test_a_device_is_not_read(store: PersistenceManager, archive: Path) -> None:
    (archive / "plugins.json").unlink()
    try:
        os.mknod(archive / "plugins.json", 0o600 | 0o020000, os.makedev(1, 5))  # endless zeros
    except PermissionError:
        pytest.skip("making a device needs privileges")
    _refused(store, archive, "no plain file")


@pytest.mark.parametrize("name", ["monitor.db", "guardrails.json"])
@pytest.mark.parametrize("change", ["truncate", "flip", "remove", "append"])
def test_files_that_were_changed(store: PersistenceManager, archive: Path, name: str, change: str) -> None:
    path = archive / name
    data = bytearray(path.read_bytes())
    if change == "truncate":
        path.write_bytes(data[:-100])
    elif change == "append":
        path.write_bytes(data + b" ")
    elif change == "remove":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    _refused(store, archive, "manifest says|checksum|cannot be read")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"format": "zip"}',
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"format": "vllm-monitor-archive", "version": 1}',
        b'{"format": "vllm-monitor-archive", "version": 1, "files": 7, "counts": {}}',
        b'{"format": "vllm-monitor-archive", "version": 1, "files": [], "counts": {"a": "b"}}',
    ],
)
def test_a_manifest_that_is_none(store: PersistenceManager, archive: Path, content: bytes) -> None:
    (archive / "manifest.json").write_bytes(content)
    _refused(store, archive, "manifest")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("store_id", "../../x"),
        ("schema", "'; DROP TABLE"),
        ("schema", 2),
        ("created_at", "now"),
        ("created_at", 10**400),
        ("created_at", math.nan),
        ("end_time", -(10**400)),
        ("schema", "0000"),
        ("start_time", "now"),
        ("counts", {"samples": 10**9}),
        ("files", [{"name": "monitor.db", "size_bytes": 10**30, "sha256": "0" * 64}]),
        ("files", [{"name": "monitor.db", "size_bytes": -1, "sha256": "0" * 64}]),
        ("files", [{"name": "monitor.db", "size_bytes": 1, "sha256": "x"}]),
        ("files", [{"name": "plugins.json", "size_bytes": 1, "sha256": "0" * 64}]),
        ("files", ["monitor.db"]),
    ],
)
def test_a_manifest_that_lies(store: PersistenceManager, archive: Path, field: str, value: Any) -> None:
    _write_manifest(archive, {**_manifest(archive), field: value})
    _refused(store, archive, ".")


def test_no_archive_at_all(store: PersistenceManager, tmp_path: Path) -> None:
    _refused(store, tmp_path / "missing", r"no manifest\.json")
    _refused(store, tmp_path, r"no manifest\.json")
    (tmp_path / "file").touch()
    _refused(store, tmp_path / "file", r"no manifest\.json|cannot be read")


def test_a_newer_archive(store: PersistenceManager, archive: Path) -> None:
    _write_manifest(archive, {**_manifest(archive), "schema": "9999"})
    _refused(store, archive, "9999", StoreTooNewError)
    _write_manifest(archive, {**_manifest(archive), "version": 2})
    _refused(store, archive, "format 2")


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER evil AFTER INSERT ON events BEGIN DELETE FROM events; END",
        "CREATE VIEW evil AS SELECT 1",
        "CREATE TABLE evil (x)",
        "CREATE INDEX evil ON events (abs(timestamp))",
        "CREATE VIRTUAL TABLE evil USING fts5(x)",
        "ALTER TABLE events ADD COLUMN evil TEXT GENERATED ALWAYS AS (upper(message)) VIRTUAL",
        "ALTER TABLE events ADD COLUMN evil TEXT",
        "DROP TABLE alerts",
        "DROP INDEX ix_events_timestamp",
    ],
)
def test_a_database_with_anything_else_in_it(store: PersistenceManager, archive: Path, statement: str) -> None:
    _change_database(archive, statement)
    _refused(store, archive, "no archive has|lacks")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET message = 'other'",
        "UPDATE blocks SET start_ms = start_ms - 1",
        "UPDATE blocks SET payload = substr(payload, 1, length(payload) - 1)",
        "UPDATE blocks SET payload = 'text'",
        "UPDATE rollups SET buckets = 7",
        "UPDATE series SET metric_name = 'other'",
        "UPDATE layouts SET series_ids = '[1,99]'",
        "UPDATE models SET metadata = '[]'",
        "UPDATE learning_data SET reward = 2",
        "UPDATE alembic_version SET version_num = '0001'",
        "UPDATE origins SET store_id = 'x' WHERE id = 2",
        "DELETE FROM events",
        "DELETE FROM models",
        "INSERT INTO metrics VALUES (1, 1, 1, 0, 0, 1, 0, 1, x'00', 0)",
        "INSERT INTO documents VALUES (1, 'plugins', 'p', 1, 0, 0, '{}', '')",
    ],
)
def test_rows_that_were_changed(store: PersistenceManager, archive: Path, statement: str) -> None:
    _change_database(archive, statement)
    _refused(store, archive, ".")


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("failure_patterns", "last_seen", "soon"),
        ("failure_patterns", "last_seen", math.inf),
        ("failure_patterns", "occurrence_count", 1.5),
        ("events", "message", b"bytes"),
        ("learning_data", "state_context", 7),
        ("models", "size_bytes", "many"),
        ("models", "timestamp", "now"),
        ("blocks", "samples", math.inf),
        ("blocks", "scrapes", "twenty"),
        ("rollups", "buckets", "x"),
        ("targets", "target", b"http://t"),
    ],
)
def test_values_of_another_type_with_checksums_that_fit(
    store: PersistenceManager, archive: Path, table: str, column: str, value: Any
) -> None:
    sums = {kind.table: kind.checksum for kind in ALL_KINDS} | {"models": model_checksum}
    with closing(sqlite3.connect(archive / "monitor.db")) as connection, connection:
        connection.row_factory = sqlite3.Row
        row = dict(connection.execute(f"SELECT * FROM {table}").fetchone()) | {column: value}  # noqa: S608  # ours
        if table in sums:
            row["checksum"] = sums[table](row)
        connection.execute(f"REPLACE INTO {table} VALUES ({','.join('?' * len(row))})", list(row.values()))  # noqa: S608  # ours
    _seal(archive)
    _refused(store, archive, ".")


def test_a_fault_of_ours_while_verifying_is_a_refusal_as_well(
    store: PersistenceManager, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(*_: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("vllm_monitor.persistence.archive.archive_import.counts_of", stumble)
    _refused(store, archive, "KeyError")


def test_pages_of_garbage(store: PersistenceManager, archive: Path) -> None:
    path = archive / "monitor.db"
    data = bytearray(path.read_bytes())
    data[8192:16384] = bytes(range(256)) * 32
    path.write_bytes(data)
    _seal(archive)
    _refused(store, archive, ".")


def test_a_value_that_unpacks_to_much_more(store: PersistenceManager, archive: Path) -> None:
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(80)) + packer.flush()
    bomb = "zlib:" + base64.b64encode(packed).decode()
    assert len(bomb) < 1 << 20
    _change_database(archive, "UPDATE learning_data SET state_context = ?", parameters=(bomb,))
    _refused(store, archive, "unpacks to more than")


@pytest.mark.slow
def test_a_block_that_claims_to_be_huge(store: PersistenceManager, archive: Path) -> None:
    from vllm_monitor.persistence.samples import block_rows
    from vllm_monitor.persistence.samples.blocks.codec import encode_block

    rows = 1 << 19
    series = [Series(f"s{number}") for number in range(64)]
    times = np.arange(rows, dtype=np.int64)
    bits = np.broadcast_to(np.uint64(0), (rows, len(series)))
    payload = encode_block(times, times, bits, series)
    with closing(sqlite3.connect(archive / "monitor.db")) as connection, connection:
        found = connection.execute("SELECT * FROM blocks WHERE kind = 1").fetchone()
        row = block_rows.BlockRow._make(found)._replace(scrapes=rows, payload=payload).summed()
        connection.execute(
            "UPDATE blocks SET scrapes = ?, payload = ?, checksum = ? WHERE id = ?",
            (rows, payload, row.checksum, row.id),
        )
    _seal(archive)
    _refused(store, archive, "samples are in one block")


def test_sequences_that_leave_no_numbers_for_ours(store: PersistenceManager, archive: Path) -> None:
    from vllm_monitor.persistence.samples.block_rows import BlockRow
    from vllm_monitor.persistence.samples.blocks.codec import encode_block

    last = (1 << 63) - 1
    numbers = np.array([0, last])
    payload = encode_block(numbers[:1], numbers[1:], np.zeros((1, 2), np.uint64), [Series("vllm:x"), Series("vllm:y")])
    with closing(sqlite3.connect(archive / "monitor.db")) as connection, connection:
        row = BlockRow._make(connection.execute("SELECT * FROM blocks WHERE kind = 1").fetchone())
        row = row._replace(
            start_ms=0, end_ms=0, first_sequence=last, last_sequence=last, scrapes=1, samples=2, payload=payload
        ).summed()
        marks = ",".join("?" * len(row))
        connection.execute(f"REPLACE INTO blocks VALUES ({marks})", row)  # noqa: S608  # only question marks
    facts = _manifest(archive)
    facts["counts"]["samples"] += 2 - 40
    _write_manifest(archive, facts)
    _seal(archive)
    _refused(store, archive, "numbers its samples wrongly")


def test_an_archive_that_fits_on_no_disk(
    store: PersistenceManager, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 10**3))
    _refused(store, archive, "has room for 1000")


def test_a_document_that_is_no_document(store: PersistenceManager, archive: Path) -> None:
    for content in (b"[1]", b'{"version": 1, "entries": {"g": 7}}', b"\xff", b'{"version": 1, "entries": {"g": {}}}'):
        (archive / "guardrails.json").write_bytes(content)
        _seal(archive)
        _refused(store, archive, r"guardrails\.json")


def test_a_model_with_the_file_of_another(store: PersistenceManager, archive: Path) -> None:
    file = next((archive / "models").iterdir())
    file.write_bytes(file.read_bytes()[:-8] + b"evilevil")
    _seal(archive)
    _refused(store, archive, "another file")
