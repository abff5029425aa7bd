"""Samples that retention has deleted come back by an import: their roll-ups, which stayed, count them once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.persistence.deeds import save_samples
from tests.persistence.rolled_up import rolled_up

from vllm_monitor.persistence import PersistenceManager

OpenStore = Callable[..., PersistenceManager]
_BASE = time.time() // 60 * 60 - 3600
_TARGET = "http://vllm:8000"


def _summed_up(store: PersistenceManager, base: float) -> list[Any]:
    """What range queries of a minute say of every series, from whatever is there."""
    told = []
    for name, aggregation in (("a_total", "increase"), *(("gauge", one) for one in ("sum", "avg", "min", "max"))):
        found = store.query_range(name, step_seconds=60, aggregation=aggregation, start_time=base, end_time=base + 7200)
        told.append([(aggregation, one.timestamps_ms.tolist(), one.values.tolist()) for one in found])
    return told


@pytest.mark.parametrize("backend", ["hybrid", "json"])
def test_importing_again_what_has_expired_counts_nothing_twice(
    open_store: OpenStore, tmp_path: Path, backend: str
) -> None:
    base = _BASE - 86_400
    first = open_store(storage_dir=tmp_path / "first", metrics_retention_days=9)
    for number in range(1, 151):
        save_samples(first, _TARGET, number, base)
    first.export_data(tmp_path / "archive")
    before = _summed_up(first, base)
    second = open_store(storage_dir=tmp_path / "second", backend=backend, metrics_retention_days=0.01)
    for _ in range(3):
        assert second.import_data(tmp_path / "archive").added["samples"] > 0
        assert _summed_up(second, base) == before
        assert second.cleanup_old_data()["metrics"] > 0
        assert second.get_statistics()["counts"]["metrics"] == 0
        assert _summed_up(second, base) == before


@pytest.mark.slow
def test_overlapping_archives_with_an_expiry_between(open_store: OpenStore, tmp_path: Path) -> None:
    base = _BASE - 3 * 86_400  # that day is over, so it is compacted
    first = open_store(storage_dir=tmp_path / "first")
    for archive, numbers in (("a", range(1, 91)), ("b", range(91, 171)), ("c", range(171, 231))):
        for number in numbers:  # each ends in the middle of a minute
            save_samples(first, _TARGET, number, base)
        if archive == "b":
            first.run_maintenance(seal_all=True)
        first.export_data(tmp_path / archive)
    first.export_data(tmp_path / "middle", base + 70, base + 130)
    before = _summed_up(first, base)
    expected = Counter(int((base + number) // 60 * 60_000) for number in range(1, 231))
    for name, order in (("second", "abcab"), ("third", ["c", "a"]), ("fourth", ["middle", "a", "c", "middle"])):
        settings: dict[str, Any] = {"metrics_retention_days": 0.01, "maintenance_interval_seconds": 3600}
        store = open_store(storage_dir=tmp_path / name, **settings)
        for archive in order:
            store.import_data(tmp_path / archive)
            store.cleanup_old_data()
        assert _summed_up(store, base) == before
        for _ in range(2):
            assert rolled_up(tmp_path / name, "gauge") == expected
            assert rolled_up(tmp_path / name, "mine") == expected
            store.run_maintenance()
            store.import_data(tmp_path / "a")


@pytest.mark.slow
def test_coarse_roll_ups_are_not_made_twice_when_the_finer_ones_come_back(
    open_store: OpenStore, tmp_path: Path
) -> None:
    base = _BASE - 3 * 86_400
    first = open_store(storage_dir=tmp_path / "first")
    for number in range(1, 151):
        save_samples(first, _TARGET, number, base)
    first.export_data(tmp_path / "archive")
    settings: dict[str, Any] = {"metrics_retention_days": 0.01, "minute_rollup_retention_days": 0.01}
    second = open_store(storage_dir=tmp_path / "second", cold_after_seconds=0, **settings)
    expected = Counter(int((base + number) // 600 * 600_000) for number in range(1, 151))
    for _ in range(3):
        second.import_data(tmp_path / "archive")
        second.run_maintenance()
        second.run_maintenance()
        assert rolled_up(tmp_path / "second", "gauge", 600) == expected
        assert rolled_up(tmp_path / "second", "gauge") == {}


@pytest.mark.slow
def test_a_backup_that_comes_back_after_expiry_counts_nothing_twice(open_store: OpenStore, tmp_path: Path) -> None:
    base = _BASE - 86_400
    settings: dict[str, Any] = {"metrics_retention_days": 0.01, "maintenance_interval_seconds": 3600}
    store = open_store(storage_dir=tmp_path / "store", **settings)
    for number in range(1, 151):
        save_samples(store, _TARGET, number, base)
    store.export_data(tmp_path / "backup")
    before = _summed_up(store, base)
    for _ in range(3):
        store.run_maintenance(seal_all=True)
        store.cleanup_old_data()
        assert _summed_up(store, base) == before
        assert store.import_data(tmp_path / "backup").added["samples"] > 0
        assert _summed_up(store, base) == before
