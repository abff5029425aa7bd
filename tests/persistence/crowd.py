"""Many threads of many processes on one store, and a reader beside them."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.persistence.deeds import DEEDS, check_samples, check_values, save_samples
from tests.persistence.victims import BUSY

from vllm_monitor.errors import StaleRevisionError
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import StrategyRecord

__all__ = ["Crowd"]

SHARED = "shared"
_OWN_DEEDS = tuple(DEEDS)


@dataclass(frozen=True, slots=True)
class Crowd:
    """What the processes of one test have in common.

    Args:
        folder: Their ``storage_dir``.
        base: All samples begin a second after this time.
        threads: Of each process.
        seconds: How long they work.
    """

    folder: Path
    base: float
    threads: int
    seconds: float

    def open(self, **settings: Any) -> PersistenceManager:
        return PersistenceManager(PersistenceConfig(storage_dir=self.folder, **(BUSY | settings)))

    def work(self, label: str) -> None:
        """One process: works, closes its store, and writes down what it did and how its store was."""
        store = self.open()
        done: list[dict[str, Any]] = [{} for _ in range(self.threads)]
        workers = [
            threading.Thread(target=self._work, args=(store, f"{label}-{number}", done[number]))
            for number in range(self.threads)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        health = store.health()
        store.close()
        report = {
            "threads": done,
            "health": [health.message, store.health().message, dict(store.health().dropped), health.not_durable],
        }
        self.report_of(label).write_text(json.dumps(report))

    def report_of(self, label: str) -> Path:
        return self.folder.parent / f"{label}.json"

    def _work(self, store: PersistenceManager, label: str, done: dict[str, Any]) -> None:
        """One thread: samples of its own target, records of every kind, counters that all share."""
        ends_at = time.monotonic() + self.seconds
        number = turns = counted = 0
        try:
            while time.monotonic() < ends_at:
                number += 1
                save_samples(store, label, number, self.base)
                if number % 25 == 0:
                    kind = _OWN_DEEDS[turns % len(_OWN_DEEDS)]
                    DEEDS[kind].do(store, label, turns)
                    turns += 1
                if number % 100 == 0:
                    store.update_happy_path_stats(SHARED, success=True)
                    _count_up(store)
                    counted += 1
                time.sleep(0.005)
        except BaseException as error:
            done["fault"] = repr(error)
            raise
        finally:
            done.update(label=label, samples=number, turns=turns, counted=counted)

    def prepare(self) -> None:
        """Make what all of them change."""
        with self.open() as store:
            store.save_happy_path(SHARED, "of all", [], {}, [])
            store.save_strategies([StrategyRecord(SHARED, attempt_count=0)])

    def read(self, until: threading.Event, faults: list[str]) -> tuple[int, int]:
        """Read until told to end, through the store and with snapshots that are held while others write.

        Returns:
            How many questions were answered, and how many snapshots were held until something new was committed.
        """
        answers = snapshots = 0
        with self.open(maintenance_interval_seconds=3_600.0) as store:
            while not until.is_set():
                try:
                    self._look_around(store)
                    answers += 1
                    snapshots += self._hold_a_snapshot(until)
                except Exception as error:
                    faults.append(repr(error))
                    until.wait(0.1)
            if not store.health().ok:
                faults.append(store.health().message)
        return answers, snapshots

    def _look_around(self, store: PersistenceManager) -> None:
        for target in store.list_targets():
            for series in store.query_range("gauge", target=target):
                numbers = check_values("gauge", series.timestamps_ms, series.values, self.base)
                if numbers != list(range(1, len(numbers) + 1)):
                    message = f"{target}: {len(numbers)} samples up to {max(numbers)}"
                    raise AssertionError(message)
        store.get_events(limit=10)
        store.latest(metric_name="gauge")
        assert SHARED in store.load_strategies()

    def _hold_a_snapshot(self, until: threading.Event) -> int:
        """Keep a view of the database until the writers, whom it must not stop, have committed something."""
        file = f"file:{self.folder / 'monitor.db'}?mode=ro"
        count = "SELECT seq FROM sqlite_sequence WHERE name = 'metrics'"
        with_snapshot, beside = (sqlite3.connect(file, uri=True, timeout=30) for _ in range(2))
        try:
            with_snapshot.execute("BEGIN")
            before = with_snapshot.execute(count).fetchone()
            while not until.is_set() and beside.execute(count).fetchone() == before:
                until.wait(0.005)
            assert with_snapshot.execute(count).fetchone() == before
            return int(not until.is_set())
        finally:
            with_snapshot.close()
            beside.close()

    def check(self, labels: list[str]) -> dict[str, int]:
        """Nothing is lost, nothing went wrong. Returns totals."""
        totals = {"samples": 0, "turns": 0, "counted": 0}
        with self.open(maintenance_interval_seconds=3_600.0) as store:
            for label in labels:
                report = json.loads(self.report_of(label).read_text())
                assert report["health"] == ["", "", {}, 0], report["health"]
                for thread in report["threads"]:
                    assert "fault" not in thread, thread["fault"]
                    self._check_thread(store, thread)
                    for name in totals:
                        totals[name] += thread[name]
            (shared,) = (path for path in store.get_happy_paths() if path.path_id == SHARED)
            assert shared.success_count == totals["counted"]
            assert store.load_strategies()[SHARED].attempt_count == totals["counted"]
            assert store.health().ok, store.health().message
        return totals

    def _check_thread(self, store: PersistenceManager, thread: dict[str, Any]) -> None:
        check_samples(store, thread["label"], self.base, thread["samples"])
        for position, kind in enumerate(_OWN_DEEDS):
            turns = list(range(position, thread["turns"], len(_OWN_DEEDS)))
            DEEDS[kind].check(store, thread["label"], set(_acknowledged(kind, turns)))


def _acknowledged(kind: str, turns: list[int]) -> list[int]:
    # A happy path counts how often it was done.
    return list(range(1, len(turns) + 1)) if kind == "happy path" else turns


def _count_up(store: PersistenceManager) -> None:
    """Add one to a figure of a document that all others change too: read, change, try again when it was stale."""
    while True:
        revision = store.document_revisions("strategies")[SHARED]
        count = store.load_strategies()[SHARED].attempt_count
        changed = StrategyRecord(SHARED, attempt_count=count + 1)
        try:
            store.save_strategies([changed], expected_revisions={SHARED: revision})
        except StaleRevisionError:
            continue
        return
