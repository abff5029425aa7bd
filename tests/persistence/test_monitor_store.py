"""What ``VLLMMonitor`` promises of its store."""

from __future__ import annotations

import subprocess
import sys
from array import array
from pathlib import Path

import pytest

from vllm_monitor.clock import ManualClock
from vllm_monitor.errors import ConfigurationError
from vllm_monitor.persistence import Event
from vllm_monitor.records import Layout, Series


def test_the_documented_construction_verbatim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    from pathlib import Path

    from vllm_monitor import VLLMMonitor
    from vllm_monitor.persistence import PersistenceConfig

    monitor = VLLMMonitor(
        enable_persistence=True,
        persistence_config=PersistenceConfig(
            storage_dir=Path("./monitor_data"),
            metrics_retention_days=30,
            checkpoint_retention_days=90,
            batch_size=1000,
            compression_enabled=True,
        ),
    )
    assert monitor.persistence_manager is not None
    assert monitor.persistence_manager.health().ok
    assert (tmp_path / "monitor_data" / "monitor.db").exists()
    monitor.close()


def test_history_export_and_import(tmp_path: Path) -> None:
    from vllm_monitor import VLLMMonitor
    from vllm_monitor.persistence import PersistenceConfig

    clock = ManualClock(10 * 3600.0)
    first, second = (
        VLLMMonitor(persistence_config=PersistenceConfig(storage_dir=tmp_path / name), clock=clock)
        for name in ("first", "second")
    )
    store = first.persistence_manager
    assert store is not None
    layout = Layout([Series("vllm:a"), Series("process_b")])
    for hour in range(10):
        store.save_scrape(layout, array("d", [hour, -hour]), timestamp=hour * 3600.0, target="t")
    store.save_event(Event(timestamp=1, event_type="x", message="m", event_id="e"))
    assert [one["value"] for one in first.get_historical_metrics("performance", hours_back=3.5)] == [9, 8, 7]
    assert len(first.get_historical_metrics()) == 20
    assert len(first.get_historical_metrics(limit=4)) == 4
    first.export_monitoring_data(tmp_path / "archive")
    for _ in range(2):
        second.import_monitoring_data(tmp_path / "archive")
        assert len(second.get_historical_metrics()) == 20
    assert second.get_persistence_stats()["counts"]["events"] == 1
    first.close()
    second.close()


def test_without_a_store() -> None:
    from vllm_monitor import VLLMMonitor

    with pytest.raises(ConfigurationError) as caught:
        VLLMMonitor(enable_persistence=False).export_monitoring_data("anywhere")
    assert "enable_persistence=True" in caught.value.hint
    monitor = VLLMMonitor(enable_persistence=False)
    assert monitor.get_historical_metrics() == []
    assert monitor.get_persistence_stats() == {}


def test_records_are_importable_without_a_database() -> None:
    names = (
        "Alert, AttemptStatus, Event, FailurePattern, FailurePrediction, GuardrailPolicy, HappyPath, LifecycleState,"
        " MitigationAttempt, MitigationOutcome, PersistenceConfig, PredictionConfidence, PredictionOutcome,"
        " RequestSummary, StateCheckpoint, StateTransition, StorageBackend"
    )
    program = f"from vllm_monitor.persistence import {names}\nimport sys; print('sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
