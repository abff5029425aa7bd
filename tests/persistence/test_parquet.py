"""Parquet files hold every sample and record, to the bit."""

from __future__ import annotations

import json
import math
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_monitor.errors import ArchiveError, ConfigurationError
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.records import Event, Layout, MetricKind, Series

OpenStore = Callable[..., PersistenceManager]
_BASE = time.time() // 60 * 60 - 3600


def _filled(open_store: OpenStore) -> PersistenceManager:
    store = open_store()
    layout = Layout([Series("vllm:x", (("engine", "0"),), MetricKind.GAUGE), Series("vllm:y_total")])
    for number in range(30):
        if number == 20:
            store.run_maintenance(seal_all=True)
        values = array("d", [math.inf if number % 7 == 0 else number / 3, float(number)])
        store.save_scrape(layout, values, timestamp=_BASE + number, target="http://vllm:8000")
        store.save_metric("custom", "mine", number, {"lone": "\ud800"}, timestamp=_BASE + number)
    store.save_event(Event(timestamp=_BASE, event_type="e", message="m", data={"n": 1}))
    store.save_learning_data("bandit", {"text": "x" * 9000}, "restart", 0.5, timestamp=_BASE + 100)
    return store


def test_samples_and_records(open_store: OpenStore, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    store = _filled(open_store)
    report = store.export_parquet(tmp_path / "parquet")
    samples = parquet.read_table(tmp_path / "parquet" / "samples-00000.parquet").to_pylist()
    assert report.counts["samples"] == len(samples) == 90
    found = {(one["metric_name"], one["timestamp"].timestamp(), repr(one["value"])) for one in samples}
    stored = store.get_metrics(limit=None)
    assert found == {(one["metric_name"], one["timestamp"], repr(float(one["value"]))) for one in stored}
    scraped = next(one for one in samples if one["metric_name"] == "vllm:x")
    assert (scraped["target"], json.loads(scraped["tags"])) == ("http://vllm:8000", {"engine": "0"})
    (event,) = parquet.read_table(tmp_path / "parquet" / "events.parquet").to_pylist()
    assert (event["message"], json.loads(event["data"])) == ("m", {"n": 1})
    (learned,) = parquet.read_table(tmp_path / "parquet" / "learning_data.parquet").to_pylist()
    assert json.loads(learned["state_context"]) == {"text": "x" * 9000}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "parquet").iterdir()} == {0o600}


def test_a_range_of_time(open_store: OpenStore, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    report = _filled(open_store).export_parquet(tmp_path / "parquet", _BASE + 15, _BASE + 24)
    table = parquet.read_table(tmp_path / "parquet" / "samples-00000.parquet")
    assert sorted({when.timestamp() - _BASE for when in table["timestamp"].to_pylist()}) == list(range(15, 25))
    assert report.counts == {**report.counts, "samples": 30, "events": 0, "learning_data": 0}


def test_a_folder_that_is_not_empty(open_store: OpenStore, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(ArchiveError, match="no empty folder"):
        open_store().export_parquet(tmp_path / "full")


def test_without_pyarrow(open_store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigurationError, match=r"vllm-monitor\[parquet\]"):
        open_store().export_parquet(tmp_path / "parquet")
    assert not (tmp_path / "parquet").exists()
