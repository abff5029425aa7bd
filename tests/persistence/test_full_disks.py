"""A disk that is full while more is going on than writing: sealing, retention, models, documents, exports."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.persistence.deeds import DEEDS, check_samples, save_samples
from tests.waiting import wait_until

from vllm_monitor.errors import StorageError
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.persistence.damage.check import check_store
from vllm_monitor.records import GuardrailPolicy

OpenStore = Callable[..., PersistenceManager]
MOUNT, UMOUNT = shutil.which("mount"), shutil.which("umount")
BASE = float(int(time.time()) - 200_000)
BUSY = {
    "block_scrapes": 40,
    "cold_after_seconds": 0.0,
    "maintenance_interval_seconds": 0.05,
    "flush_interval_seconds": 0.3,
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not MOUNT or not UMOUNT:
        pytest.skip("needs mount and umount")
    command = [MOUNT, "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run([UMOUNT, "-l", str(folder)], check=True)


def fill_up(disk: Path) -> Path:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        for size in (1 << 20, 4096):
            with suppress(OSError):
                while True:
                    file.write(os.urandom(size))
    return ballast


def is_well(store: PersistenceManager) -> bool:
    health = store.health()
    return health.ok and not health.queued and not health.not_durable


def says_full(store: PersistenceManager) -> bool:
    message = store.health().message
    return "is full" in message or "No space left" in message


def check(store: PersistenceManager, folder: Path) -> None:
    report = check_store(PersistenceConfig(storage_dir=folder))
    assert report.ok, report.findings
    assert store.health().ok, store.health().message


def test_sealing_goes_on_by_itself_when_there_is_room_again(disk: Path, open_store: OpenStore) -> None:
    store = open_store(storage_dir=disk / "store", durable_timeout_seconds=2, **BUSY)
    number = 0

    def save(scrapes: int) -> None:
        nonlocal number
        for _ in range(scrapes):
            number += 1
            save_samples(store, "t", number, BASE)

    save(100)
    assert store.flush_all()
    ballast = fill_up(disk)
    for _ in range(20):
        save(50)
        time.sleep(0.02)  # so that maintenance tries, again and again
    wait_until(lambda: store.health().degraded, "the full disk is noticed")
    assert says_full(store)
    check_samples(store, "t", BASE, number)  # from memory
    ballast.unlink()
    wait_until(lambda: is_well(store), "the store recovers")
    save(100)
    store.flush_all()
    sealed = 40 * (number // 40)
    wait_until(lambda: store.get_statistics()["counts"]["metric_rows"] < sealed, "sealing goes on")
    check_samples(store, "t", BASE, number)
    assert store.health().dropped == {}
    check(store, disk / "store")
    store.close()
    store = open_store(storage_dir=disk / "store")
    check_samples(store, "t", BASE, number)


def test_rare_records_of_every_kind_wait_for_room(disk: Path, open_store: OpenStore) -> None:
    store = open_store(storage_dir=disk / "store", durable_timeout_seconds=0.2, **BUSY)
    for deed in DEEDS.values():
        deed.do(store, "l", 1)
    assert is_well(store)
    ballast = fill_up(disk)
    for turn in range(2, 5):
        for name, deed in DEEDS.items():
            if name != "model":
                deed.do(store, "l", turn)  # never raises
    assert store.health().not_durable > 0
    assert says_full(store)
    for name, deed in DEEDS.items():
        if name != "model":
            deed.check(store, "l", set(range(1, 5)))  # visible although not durable
    ballast.unlink()
    wait_until(lambda: is_well(store), "the store recovers")
    for name, deed in DEEDS.items():
        if name != "model":
            deed.check(store, "l", set(range(1, 5)))
    store.close()
    store = open_store(storage_dir=disk / "store")
    for name, deed in DEEDS.items():
        if name != "model":
            deed.check(store, "l", set(range(1, 5)))
    check(store, disk / "store")


def test_a_model_waits_for_room_and_the_older_one_stays_whole(disk: Path, open_store: OpenStore) -> None:
    store = open_store(storage_dir=disk / "store", durable_timeout_seconds=0.3, flush_interval_seconds=0.3)
    model = DEEDS["model"]
    model.do(store, "l", 1)
    ballast = fill_up(disk)
    model.do(store, "l", 2)
    assert store.health().not_durable == 1
    assert model.found(store, "l") == {2}
    other = open_store(storage_dir=disk / "store")
    assert model.found(other, "l") == {1}
    ballast.unlink()
    wait_until(lambda: is_well(store), "the store recovers")
    assert model.found(other, "l") == {2}
    store.close()
    assert model.found(open_store(storage_dir=disk / "store"), "l") == {2}


@pytest.mark.parametrize("backend", ["hybrid", "sqlite"])
def test_documents_are_never_half_written(disk: Path, open_store: OpenStore, backend: str) -> None:
    store = open_store(
        storage_dir=disk / "store", durable_timeout_seconds=0.3, flush_interval_seconds=0.3, backend=backend
    )
    store.save_guardrails([GuardrailPolicy(f"g{number}", "before", "x > 1") for number in range(200)])
    ballast = fill_up(disk)
    store.save_guardrails([GuardrailPolicy(f"g{number}", "after " * 100, "x > 1") for number in range(200)])
    assert {one.description for one in store.load_guardrails()} == {"after " * 100}
    assert store.health().not_durable > 0
    other = open_store(storage_dir=disk / "store", backend=backend)
    assert {one.description for one in other.load_guardrails()} == {"before"}
    ballast.unlink()
    wait_until(lambda: is_well(store), "the store recovers")
    assert {one.description for one in other.load_guardrails()} == {"after " * 100}


def test_retention_makes_room_or_waits_for_it(disk: Path, open_store: OpenStore) -> None:
    store = open_store(storage_dir=disk / "store", **BUSY)
    for number in range(1, 801):
        save_samples(store, "old", number, BASE - 40 * 86_400)
        save_samples(store, "new", number, BASE)
    store.flush_all()
    ballast = fill_up(disk)
    for _ in range(3):
        with suppress(StorageError):
            store.run_maintenance(seal_all=True)
    check_samples(store, "new", BASE, 800)
    ballast.unlink()
    store.run_maintenance(seal_all=True)
    assert store.query_range("a_total", target="old") == []
    check_samples(store, "new", BASE, 800)
    wait_until(lambda: is_well(store), "the store recovers")
    check(store, disk / "store")


def test_an_export_onto_a_full_disk_leaves_nothing_that_looks_like_one(
    disk: Path, open_store: OpenStore, tmp_path: Path
) -> None:
    store = open_store(storage_dir=tmp_path / "store")
    for number in range(1, 201):
        save_samples(store, "t", number, BASE)
    ballast = fill_up(disk)
    with pytest.raises(StorageError) as caught:
        store.export_data(disk / "archive")
    assert caught.value.hint
    assert store.health().ok
    with pytest.raises(StorageError):
        open_store(storage_dir=tmp_path / "copy").import_data(disk / "archive")
    ballast.unlink()
    store.export_data(disk / "archive")
    copy = open_store(storage_dir=tmp_path / "copy")
    copy.import_data(disk / "archive")
    check_samples(copy, "t", BASE, 200)


@pytest.mark.parametrize("cut", [0, -1])
def test_a_half_written_document_is_kept_and_the_others_load(open_store: OpenStore, tmp_path: Path, cut: int) -> None:
    store = open_store()
    DEEDS["guardrail"].do(store, "l", 1)
    DEEDS["plugin"].do(store, "l", 1)
    store.close()
    file = tmp_path / "store" / "guardrails.json"
    damaged = file.read_bytes()[:cut]
    file.write_bytes(damaged)
    store = open_store()
    assert DEEDS["plugin"].found(store, "l") == {1}
    DEEDS["guardrail"].do(store, "l", 2)
    assert DEEDS["guardrail"].found(store, "l") == {2}
    if cut > 0:
        aside = [path for path in file.parent.iterdir() if path.name.startswith("guardrails.json.damaged")]
        assert [path.read_bytes() for path in aside] == [damaged]
        assert not store.health().ok
    store.close()
    assert DEEDS["guardrail"].found(open_store(), "l") == {2}
