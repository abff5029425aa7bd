"""Threads and processes on one store: nothing is lost, nothing goes wrong, readers are in nobody's way."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from tests.persistence.crowd import Crowd
from tests.persistence.victims import nursery

from vllm_monitor.persistence import PersistenceConfig
from vllm_monitor.persistence.damage.check import check_store


def crowd(folder: Path, processes: int, threads: int, seconds: float) -> dict[str, int]:
    one = Crowd(folder / "store", float(int(time.time()) - 200_000), threads, seconds)
    one.prepare()
    context = nursery()
    labels = [f"p{number}" for number in range(processes)]
    running = [context.Process(target=one.work, args=(label,)) for label in labels]
    for process in running:
        process.start()
    done = threading.Event()
    faults: list[str] = []
    read: list[tuple[int, int]] = []
    reader = threading.Thread(target=lambda: read.append(one.read(done, faults)))
    reader.start()
    for process in running:
        process.join()
    done.set()
    reader.join()
    assert [process.exitcode for process in running] == [0] * processes
    assert not faults
    ((answers, snapshots),) = read
    assert answers > 0
    assert snapshots > 0  # each was held until others had committed: it did not stop them
    totals = one.check(labels)
    report = check_store(PersistenceConfig(storage_dir=one.folder))
    assert report.ok, report.findings
    assert report.verified["blocks"] > 0  # sealing went on meanwhile
    return totals


def test_two_processes_and_a_reader(tmp_path: Path) -> None:
    totals = crowd(tmp_path, processes=2, threads=3, seconds=1.5)
    assert totals["samples"] > 100


@pytest.mark.slow
def test_four_processes_of_eight_threads_for_a_minute(tmp_path: Path) -> None:
    totals = crowd(tmp_path, processes=4, threads=8, seconds=60)
    assert totals["samples"] > 10_000
    assert totals["counted"] > 100
