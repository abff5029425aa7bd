"""Stored files of every released version open, migrate, and keep what they hold, sealed or not."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from vllm_monitor.persistence import PersistenceConfig, PersistenceManager

FILES = sorted((Path(__file__).parents[1] / "data" / "stores").glob("*.db.gz"))


def content_of(store: PersistenceManager) -> dict[str, Any]:
    """What the JSON file beside a stored file says."""
    digest = hashlib.sha256()
    count = 0
    for data in sorted(store.query_range(None), key=lambda data: (data.target, str(data.series))):
        digest.update(f"{data.target} {data.metric_type} {data.series}".encode())
        digest.update(data.timestamps_ms.astype("<i8").tobytes())
        digest.update(data.values.astype("<f8").tobytes())
        count += len(data)
    return {
        "samples": count,
        "samples_sha256": digest.hexdigest(),
        "series": len(store.list_series()),
        "targets": store.list_targets(),
        "mixed": [
            [repr(sample["value"]), sample["timestamp"], sample["metadata"]]
            for sample in store.get_metrics(metric_name="mixed")
        ],
        "checkpoints": [repr(checkpoint) for checkpoint in store.get_checkpoints(limit=None)],
        "events": [repr(event) for event in store.get_events(limit=None)],
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name.split(".")[0])
def test_a_stored_file_keeps_what_it_holds(file: Path, tmp_path: Path) -> None:
    expected = json.loads(file.with_name(f"{file.name.split('.')[0]}.json").read_text())
    (tmp_path / "monitor.db").write_bytes(gzip.decompress(file.read_bytes()))
    config = PersistenceConfig(
        storage_dir=tmp_path, metrics_retention_days=36500, checkpoint_retention_days=36500, event_retention_days=36500
    )
    with PersistenceManager(config, synchronous=True) as store:
        assert content_of(store) == expected
        report = store.run_maintenance(seal_all=True)
        assert report.sealed_samples == expected["samples"]
        assert content_of(store) == expected
        store.run_maintenance()  # and joined
    with PersistenceManager(config, synchronous=True) as store:
        assert content_of(store) == expected
        assert store.get_statistics()["counts"]["metric_rows"] == 0
        assert store.health().ok


def test_there_are_stored_files() -> None:
    assert FILES
