"""What a store promises of moving: out of one backend and into another."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

from vllm_monitor.persistence import PersistenceConfig, PersistenceManager, StorageBackend
from vllm_monitor.testing.contract_base import HOST, StoreContract
from vllm_monitor.testing.example_records import GUARDRAIL, HOSTILE, PLUGIN, RECORDS, STRATEGY, checkpoint
from vllm_monitor.testing.expectations import exactly, expect, expect_equal
from vllm_monitor.testing.sample_contract import PAGE

__all__ = ["ArchiveContract"]


class ArchiveContract(StoreContract):
    """Export and import."""

    def test_an_archive_holds_everything(self, tmp_path: Path) -> None:
        """Imported into a new store of the same backend, and again, it is the same as before."""
        with self.open(tmp_path / "from") as store:
            _fill(store)
            wanted = _everything(store)
            store.export_data(tmp_path / "archive")
        for again in range(2):
            with self.open(tmp_path / "to") as store:
                store.import_data(tmp_path / "archive")
                _expect_same(_everything(store), wanted, f"import {again + 1}")
        with self.open(tmp_path / "to") as store:
            _expect_same(_everything(store), wanted, "reopening after the import")

    def test_moving_there_and_back(self, tmp_path: Path) -> None:
        """Through every backend of the package and back, nothing changes."""
        with self.open(tmp_path / "from") as store:
            _fill(store)
            wanted = _everything(store)
            store.export_data(tmp_path / "archive")
        for backend in StorageBackend:
            config = PersistenceConfig(storage_dir=tmp_path / backend.value, backend=backend)
            with PersistenceManager(config) as other:
                other.import_data(tmp_path / "archive")
                _expect_same(_everything(other), wanted, f"import into {backend}")
                other.export_data(tmp_path / f"archive-{backend}")
            with self.open(tmp_path / f"back-from-{backend}") as store:
                store.import_data(tmp_path / f"archive-{backend}")
                _expect_same(_everything(store), wanted, f"import out of {backend}")

    def test_what_comes_home_is_recognised(self, tmp_path: Path) -> None:
        """Importing a store's own archive adds nothing to it, and what was saved since stays."""
        with self.open(tmp_path / "store") as store:
            _fill(store)
            store.export_data(tmp_path / "archive")
            store.save_metric("custom", "since", 1, timestamp=500.0)
            wanted = _everything(store)
            store.import_data(tmp_path / "archive")
            _expect_same(_everything(store), wanted, "importing the own archive")
        with self.open(tmp_path / "store") as store:
            _expect_same(_everything(store), wanted, "reopening")


def _fill(store: PersistenceManager) -> None:
    for second in range(5):
        store.save_scrape(PAGE, array("d", [second, -0.0, float("inf"), 0.1]), timestamp=100 + second // 2, target=HOST)
        store.save_metric("custom", "mine", second, {"n": second % 2}, {"path": Path("/p")}, timestamp=100 + second)
    for example in RECORDS:
        for number in range(2):
            example.save(store, example.make(f"{example.name}-{number}", 5.0 + number, metadata=HOSTILE))
    store.save_happy_path("path", "name", [checkpoint("a", 1.0)], {"x": 1.0}, ["queue"])
    store.update_happy_path_stats("path", success=True)
    store.save_learning_data("bandit", HOSTILE, 1, 0.5)
    store.save_guardrails([GUARDRAIL])
    store.save_plugins([PLUGIN])
    store.save_strategies([STRATEGY])
    store.save_model("model", {"a": [1, 2.5]}, {"by": "me"})


def _everything(store: PersistenceManager) -> dict[str, Any]:
    return {
        "samples": store.get_metrics(limit=None),
        **{example.name: example.load(store, limit=None) for example in RECORDS},
        "happy paths": store.get_happy_paths(),
        "learning data": store.get_learning_data(limit=None),
        "guardrails": store.load_guardrails(),
        "plugins": store.load_plugins(),
        "strategies": store.load_strategies(),
        "model": store.load_model("model"),
    }


def _expect_same(found: dict[str, Any], wanted: dict[str, Any], when: str) -> None:
    for name, value in wanted.items():
        if name == "samples":  # the order of series at equal times is that of the store
            texts = [sorted(repr(exactly(sample)) for sample in samples) for samples in (found[name], value)]
            expect(texts[0] == texts[1], f"samples after {when}: found {found[name]!r} instead of {value!r}")
        else:
            expect_equal(found[name], value, f"{name} after {when}")
