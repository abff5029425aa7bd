"""Processes that work on a store until they are killed, and what is checked after each of them.

They are forked off one process that has everything imported, so that one is at work a few hundredths of a second
after it was asked for, and many can be killed.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.persistence.deeds import DEEDS, check_samples, check_values, save_samples

from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.persistence.damage.check import check_store
from vllm_monitor.records import FailurePrediction, LifecycleState, PredictionConfidence, PredictionOutcome

__all__ = ["Victim", "nursery"]

Note = Callable[[str, int], None]
DAY = 86_400.0
LONG_AGO_SECONDS = 40 * DAY
"""Older than raw samples are kept, younger than roll-ups are: retention deletes them while the victim lives."""

BUSY: dict[str, Any] = {
    "required": True,
    "durable_timeout_seconds": 30,
    "block_scrapes": 40,
    "cold_after_seconds": 0.0,
    "maintenance_interval_seconds": 0.05,
    "flush_interval_seconds": 0.3,
}
"""Sealing, compaction, retention and checkpoints of the log run all the time."""


def nursery() -> Any:
    """Where victims are made, ready to make them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.persistence.victims"])
    first = context.Process(target=int)
    first.start()
    first.join()
    return context


@dataclass(frozen=True, slots=True)
class Victim:
    """One process, and its log of what was acknowledged.

    Args:
        folder: Its ``storage_dir``.
        label: Its target, and part of the ids of its records; unlike that of any other.
        job: ``write``, ``retain`` (much of what it writes expires at once) or ``export``.
        base: Its samples begin a second after this time.
        settings: Of its store, beside :data:`BUSY`.
    """

    folder: Path
    label: str
    job: str
    base: float
    settings: dict[str, Any]

    @property
    def log(self) -> Path:
        """A line for each thing: kind, number, time. What a process has written survives its death."""
        return self.folder.parent / f"{self.label}.log"

    @property
    def archives(self) -> Path:
        """Where it exports to."""
        return self.folder.parent / f"{self.label}-archives"

    @property
    def old_label(self) -> str:
        """The target of its samples that are too old to be kept."""
        return f"{self.label}-old"

    def live(self) -> None:
        """Work until killed."""
        log = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

        def note(kind: str, number: int) -> None:
            os.write(log, f"{kind}\t{number}\t{time.time()}\n".encode())

        try:
            self._work(note)
        except BaseException as error:
            note(f"FAULT {type(error).__name__}: {error}".replace("\n", " ").replace("\t", " "), 0)
            raise

    def _work(self, note: Note) -> None:
        store = PersistenceManager(PersistenceConfig(storage_dir=self.folder, **(BUSY | self.settings)))
        note("opened", 1)
        beside = {"export": self._export, "retain": self._retain}.get(self.job)
        if beside is not None:
            threading.Thread(target=self._do, args=(beside, store, note), daemon=True).start()
        kinds = list(DEEDS)
        number = 0
        while True:
            number += 1
            save_samples(store, self.label, number, self.base)
            if self.job == "retain":
                save_samples(store, self.old_label, number, self.base - LONG_AGO_SECONDS)
            note("sample", number)
            if number % 3 == 0:
                turn = number // 3
                kind = kinds[turn % len(kinds)]
                DEEDS[kind].do(store, self.label, turn)
                # A happy path is counted once in each round.
                note(kind, math.ceil(turn / len(kinds)) if kind == "happy path" else turn)
                if self.job == "retain":
                    store.save_prediction(_old_prediction(self.old_label, turn), actual_outcome="happened")
                    note("old prediction", turn)
            if number % 64 == 0 and not store.health().ok:
                note(f"FAULT {store.health().message}", number)
            time.sleep(0.001)

    def _do(self, what: Callable[[PersistenceManager, int], str], store: PersistenceManager, note: Note) -> None:
        """Do something beside the writing, again and again."""
        number = 0
        while True:
            number += 1
            try:
                note(what(store, number), number)
            except Exception as error:
                note(f"FAULT {type(error).__name__}: {error}".replace("\n", " "), number)
                raise

    def _export(self, store: PersistenceManager, number: int) -> str:
        store.export_data(self.archives / str(number))
        return "archive"

    def _retain(self, store: PersistenceManager, number: int) -> str:
        time.sleep(0.1)
        return "retention" if any(store.cleanup_old_data().values()) else "nothing to expire"

    def check(self, killed_at: float) -> dict[str, int]:
        """All that must hold after its death, whoever else is still at work on the store.

        Returns:
            Kind to how many of it were acknowledged; how many blocks there are, and how many of its samples expired.
        """
        acknowledged, expired = self._acknowledged(killed_at), 0
        config = PersistenceConfig(storage_dir=self.folder, **(BUSY | self.settings))
        calm = config.model_copy(update={"maintenance_interval_seconds": 3_600.0})
        with PersistenceManager(calm) as store:
            assert store.health().ok, store.health().message
            report = check_store(config)
            assert report.ok, report.findings
            check_samples(store, self.label, self.base, max(acknowledged["sample"], default=0))
            for kind, deed in DEEDS.items():
                deed.check(store, self.label, acknowledged[kind])
            if self.job == "retain":
                expired = self._check_old(store, acknowledged)
            assert store.health().ok, store.health().message
        counts = {kind: len(numbers) for kind, numbers in acknowledged.items()}
        return {**counts, "block": report.verified["blocks"], "expired sample": expired}

    def _acknowledged(self, killed_at: float) -> dict[str, set[int]]:
        acknowledged: defaultdict[str, set[int]] = defaultdict(set)
        text = self.log.read_text() if self.log.exists() else ""
        for line in text.splitlines():
            kind, number, at = line.split("\t")
            assert not kind.startswith("FAULT"), line
            # Samples are promised after a second, all else at once.
            if kind != "sample" or float(at) < killed_at - 1:
                acknowledged[kind].add(int(number))
        return acknowledged

    def _check_old(self, store: PersistenceManager, acknowledged: dict[str, set[int]]) -> int:
        """What expires may be there or not, but not twice, not in part, and its counts and roll-ups are complete."""
        base, left = self.base - LONG_AGO_SECONDS, 0
        for name in ("a_total", "gauge", "odd"):
            for series in store.query_range(name, target=self.old_label):
                numbers = check_values(name, series.timestamps_ms, series.values, base)
                assert numbers == sorted(set(numbers)), name
                if name == "a_total":
                    left = len(numbers)
        scores = store.get_prediction_scores(target=self.old_label)  # of those that are left and those that expired
        counted = sum(one.predictions for one in scores if one.outcome is PredictionOutcome.HAPPENED)
        asked = len(acknowledged["old prediction"])
        assert asked <= counted <= asked + 1, (asked, counted)
        last = max(acknowledged["sample"], default=0)
        minutes = store.query_range("a_total", target=self.old_label, step_seconds=60, aggregation="last")
        found = dict(zip(minutes[0].timestamps_ms.tolist(), minutes[0].values.tolist(), strict=True)) if minutes else {}
        for number in range(1, last + 1):
            at_ms = round((base + number) * 1000)
            if (at_ms + 1000) % 60_000 == 0:  # the last scrape of its minute
                assert float(number) in found.values(), (number, last, found)
        return max(0, last - left)


def _old_prediction(label: str, number: int) -> FailurePrediction:
    at = time.time() - 2 * LONG_AGO_SECONDS
    state, sure = LifecycleState.SERVING, PredictionConfidence.HIGH
    return FailurePrediction(
        f"{label}-{number}", at, state, None, "engine_stall", 60.0, 0.7, sure, [], [], target=label
    )
