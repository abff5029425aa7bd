"""kill -9 at any moment: nothing that was acknowledged is lost, nothing is there twice, every store is sound."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.persistence.victims import Victim, nursery
from tests.waiting import wait_until

from vllm_monitor.clock import make_random
from vllm_monitor.errors import ArchiveError
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager

LONGEST_SECONDS = {"write": 3.0, "retain": 4.0, "migrate": 0.7, "export": 5.0}
LONGEST_OPENING_SECONDS = 0.3
OLD_STORE = Path(__file__).parents[1] / "data" / "stores" / "0001.db.gz"
DAY = 86_400.0


@dataclass
class Killing:
    """Kills victims one after the other, several at once.

    Args:
        folder: Where their stores are.
        at_once: How many live at the same time.
        pace: Share of the longest time that they live.
    """

    folder: Path
    at_once: int
    pace: float = 1.0
    context: Any = field(default_factory=nursery)
    kills: Counter[str] = field(default_factory=Counter)
    acknowledged: Counter[str] = field(default_factory=Counter)
    seed: int = field(default_factory=lambda: make_random(None).randrange(1 << 32))

    def run(self, plan: Iterable[tuple[str, str, int, dict[str, Any]]]) -> None:
        """Go through a plan of (store, job, kills, settings); each line of it is one series of victims."""
        with (
            ProcessPoolExecutor(2, mp_context=self.context) as checkers,
            ThreadPoolExecutor(self.at_once) as killers,
        ):
            series = [killers.submit(self._kill_series, checkers, number, *line) for number, line in enumerate(plan)]
            for one in series:
                one.result()

    def _kill_series(
        self, checkers: ProcessPoolExecutor, series: int, store: str, job: str, kills: int, settings: dict[str, Any]
    ) -> None:
        random = make_random(self.seed + series)
        for attempt in range(kills):
            label = f"{store}-{series}-{attempt}"
            name = label if job == "migrate" else store
            folder = self.folder / name / "store"
            folder.mkdir(parents=True, exist_ok=True)
            if job == "migrate":
                (folder / "monitor.db").write_bytes(gzip.decompress(OLD_STORE.read_bytes()))
            base = float(int(time.time()) - 200_000)
            victim = Victim(folder, label, job, base, settings)
            # Some of them while they open the store, the others at work.
            is_at_work = random.random() < (0.3 if job == "migrate" else 0.75)
            killed_at = self._kill(victim, random.random() * LONGEST_SECONDS[job] * self.pace, is_at_work=is_at_work)
            found = checkers.submit(victim.check, killed_at).result()
            self.acknowledged.update(found)
            self.kills[job] += 1
            if job == "migrate":
                check_the_old_store(folder)
            if job == "export":
                check_archives(victim)

    def _kill(self, victim: Victim, seconds: float, *, is_at_work: bool) -> float:
        process = self.context.Process(target=victim.live, daemon=True)
        process.start()
        if is_at_work:
            wait_until(lambda: victim.log.exists() or not process.is_alive(), "the victim is at work", 60)
            threading.Event().wait(seconds)
        else:
            threading.Event().wait(min(seconds, LONGEST_OPENING_SECONDS))
        assert process.is_alive(), f"{victim.label} ended by itself with {process.exitcode}"
        process.kill()
        killed_at = time.time()
        process.join()
        process.close()
        return killed_at


def check_the_old_store(folder: Path) -> None:
    """What the store of the first release held is all there, to the bit."""
    expected = json.loads(OLD_STORE.with_name("0001.json").read_text())
    config = PersistenceConfig(storage_dir=folder, maintenance_interval_seconds=3_600.0, **FOR_EVER)
    digest = hashlib.sha256()
    with PersistenceManager(config) as store:
        old = [series for series in store.query_range(None) if series.target in expected["targets"]]
        for series in sorted(old, key=lambda one: (one.target, str(one.series))):
            digest.update(f"{series.target} {series.metric_type} {series.series}".encode())
            digest.update(series.timestamps_ms.astype("<i8").tobytes())
            digest.update(series.values.astype("<f8").tobytes())
        checkpoints = [one for one in store.get_checkpoints(limit=None) if not one.target.startswith("migrate")]
    assert digest.hexdigest() == expected["samples_sha256"]
    assert len(checkpoints) == len(expected["checkpoints"])


def check_archives(victim: Victim) -> None:
    """An archive is complete or is none."""
    numbers = (
        sorted(int(path.name) for path in victim.archives.iterdir() if path.name.isdigit())
        if (victim.archives.exists())
        else []
    )
    acknowledged = (
        {int(line.split("\t")[1]) for line in victim.log.read_text().splitlines() if line.startswith("archive")}
        if victim.log.exists()
        else set()
    )
    assert acknowledged <= set(numbers)
    for number in numbers[-2:]:
        with PersistenceManager(
            PersistenceConfig(storage_dir=victim.folder.parent / f"copy-{victim.label}-{number}")
        ) as copy:
            try:
                copy.import_data(victim.archives / str(number))
            except ArchiveError:
                assert number not in acknowledged
            else:
                assert copy.health().ok


FOR_EVER: dict[str, Any] = {
    "metrics_retention_days": 100_000,
    "checkpoint_retention_days": 100_000,
    "event_retention_days": None,
}
SQLITE: dict[str, Any] = {"backend": "sqlite"}


@pytest.mark.slow
def test_kill_9_at_two_hundred_random_moments(tmp_path: Path) -> None:
    killing = Killing(tmp_path, at_once=4)
    migrations = [(f"migrate-{number}", "migrate", 6, FOR_EVER) for number in range(5)]
    killing.run(
        [
            ("hybrid", "write", 20, {}),
            ("sqlite", "write", 20, SQLITE),
            ("shared", "write", 20, {}),  # two at once on one store
            ("shared", "write", 20, {}),
            *migrations[:2],
            ("retain", "retain", 20, {}),
            ("retain-shared", "retain", 10, SQLITE),
            ("retain-shared", "retain", 10, SQLITE),
            *migrations[2:],
            ("export", "export", 20, {}),
            ("export-sqlite", "export", 20, SQLITE),
            ("full", "write", 10, {"durability": "full"}),
        ]
    )
    assert killing.kills.total() == 200
    print(f"kills {dict(killing.kills)}, acknowledged {dict(killing.acknowledged)}")
    assert {"sample", "block", "expired sample", "old prediction", "retention", "archive"} <= set(killing.acknowledged)


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    killing = Killing(tmp_path, at_once=3, pace=0.25)
    killing.run([("write", "write", 2, {}), ("retain", "retain", 1, SQLITE), ("migrate", "migrate", 1, FOR_EVER)])
    assert killing.kills.total() == 4
