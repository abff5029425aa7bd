"""What a store promises of its life: crowds, sudden deaths, damage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from array import array
from pathlib import Path

from vllm_monitor.clock import SystemClock, make_random
from vllm_monitor.errors import StoreUnavailableError
from vllm_monitor.persistence import PersistenceConfig
from vllm_monitor.testing.contract_base import HOST, StoreContract
from vllm_monitor.testing.example_records import RECORDS, checkpoint
from vllm_monitor.testing.expectations import expect, expect_equal, expect_error
from vllm_monitor.testing.sample_contract import PAGE

__all__ = ["LifetimeContract"]

_VICTIM = """
import os, sys
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.testing.example_records import checkpoint

store = PersistenceManager(PersistenceConfig.model_validate_json(sys.argv[1]))
number = 0
while True:
    number += 1
    store.save_metric("custom", "x", number, timestamp=number)
    store.save_checkpoint(checkpoint(f"c{number}", number))
    os.write(1, f"{number}\\n".encode())
"""
_LINES_BEFORE_THE_END = 40
_DAMAGED_BYTES = 64


class LifetimeContract(StoreContract):
    """Threads, processes, kill -9, damage, statistics."""

    def test_threads_lose_nothing(self, tmp_path: Path) -> None:
        """Several threads save at once; all of it is there, once."""

        def work(thread: int) -> None:
            for number in range(50):
                store.save_scrape(PAGE, array("d", [number] * 4), timestamp=number, target=f"t{thread}")
                store.save_metric("custom", "x", number, timestamp=number, target=f"t{thread}")
            store.save_checkpoint(checkpoint(f"c{thread}", thread))

        with self.open(tmp_path) as store:
            threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        with self.open(tmp_path) as store:
            for number in range(4):
                for name in ("x", "odd"):
                    (found,) = store.query_range(name, target=f"t{number}")
                    expect_equal(found.values.tolist(), [float(value) for value in range(50)], f"{name} of a thread")
            expect_equal(len(store.get_checkpoints()), 4, "checkpoints of threads")
            expect(store.health().ok, f"the store is not well: {store.health().message}")

    def test_a_folder_that_is_open_already(self, tmp_path: Path) -> None:
        """Two stores of a folder share it, or the second one is refused clearly."""
        with self.open(tmp_path) as first:
            if not self.several_stores:
                with expect_error(StoreUnavailableError, "a second store of a folder"):
                    self.open(tmp_path, required=True)
                return
            with self.open(tmp_path) as second:
                for store, name in ((first, "a"), (second, "b")):
                    store.save_checkpoint(checkpoint(name, 1.0))
                    store.save_metric("custom", "x", 1, timestamp=1.0)
                    store.flush_all()
                for store in (first, second):
                    expect_equal(len(store.get_checkpoints()), 2, "checkpoints of two stores")
                    expect_equal(len(store.get_metrics()), 2, "samples of two stores")

    def test_kill_9_loses_nothing_acknowledged(self, tmp_path: Path) -> None:
        """Nothing acknowledged is lost, and the store opens well."""
        config = self.config(tmp_path)
        text = PersistenceConfig.model_construct(
            **{name: value for name, value in config if name != "url"}
        ).model_dump_json(exclude={"url"})
        command = [sys.executable, "-c", _VICTIM, text]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as victim:
            if victim.stdout is None:
                raise AssertionError(command)
            lines = [victim.stdout.readline() for _ in range(_LINES_BEFORE_THE_END)]
            victim.send_signal(signal.SIGKILL)
            lines += victim.stdout.readlines()
        acknowledged = max(int(line) for line in lines if line.endswith(b"\n"))
        with self.open(tmp_path) as store:
            expect(store.health().ok, f"the store is not well after kill -9: {store.health().message}")
            found = {int(one.timestamp) for one in store.get_checkpoints(limit=None)}
            missing = sorted(set(range(1, acknowledged + 1)) - found)
            expect(not missing, f"acknowledged checkpoints are lost: {missing}")

    def test_damage_never_stops_it(self, tmp_path: Path) -> None:
        """With random bytes over any of its files it opens, says so, and goes on."""
        random = make_random(7)
        with self.open(tmp_path) as store:
            for number in range(100):
                store.save_scrape(PAGE, array("d", [number] * 4), timestamp=number, target=HOST)
            for example in RECORDS:
                example.save(store, example.make("one", 1.0))
        files = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > _DAMAGED_BYTES]
        for path in files:
            with path.open("r+b") as file:
                file.seek(random.randrange(path.stat().st_size - _DAMAGED_BYTES))
                file.write(os.urandom(_DAMAGED_BYTES))
        for round_number in range(2):
            with self.open(tmp_path, required=True) as store:
                for example in RECORDS:
                    example.load(store)
                    if round_number == 0:
                        example.save(store, example.make("after", 2.0))
                    expect("after" in [getattr(one, example.id_field) for one in example.load(store)], example.name)
                store.save_metric("custom", "after", round_number, timestamp=round_number)
                expect(store.flush_all(), f"the damaged store cannot be written: {store.health().message}")
                expect_equal(len(store.get_metrics(metric_name="after")), round_number + 1, "samples after damage")

    def test_statistics_count_everything(self, tmp_path: Path) -> None:
        """Counts by type, bytes, range of time, whether committed or not."""
        before = SystemClock().now()
        with self.open(tmp_path) as store:
            for round_number in range(2):
                store.save_scrape(PAGE, array("d", [1.0] * 4), timestamp=10 + round_number, target=HOST)
                store.save_metric("custom", "x", 1, timestamp=20 + round_number)
                for example in RECORDS:
                    example.save(store, example.make(f"{example.name}-{round_number}", 1.0))
            store.flush_all()
            found = store.get_statistics()
            expect_equal(found["counts"]["metrics"], 10, "samples in the statistics")
            for example in RECORDS:
                expect_equal(found["counts"][example.name], 2, f"{example.name} in the statistics")
            expect_equal((found["oldest"], found["newest"]), (10.0, 21.0), "the range of time")
            expect(found["bytes"] > 0, "the store takes no room")
            expect(found["last_flush"] >= before, "the last flush is before the first save")
            expect_equal((found["dropped"], found["degraded"]), ({}, False), "trouble")
