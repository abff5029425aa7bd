"""Why there are gaps in what is stored."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest

from vllm_monitor.cli.gaps import AWAY, LATE, SILENT, find_gaps
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import Event, Layout, Series

T0 = 1_700_000_000.0
TARGET = "http://a:1"


@pytest.mark.parametrize(("event_type", "reason"), [("watch_started", AWAY), ("monitor_late", LATE), (None, SILENT)])
def test_a_gap_has_a_reason(tmp_path: Path, event_type: str | None, reason: str) -> None:
    layout = Layout([Series("vllm:num_requests_running")])
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path / "s")) as store:
        for second in (*range(10), *range(17, 27)):
            store.save_scrape(layout, array("d", [1.0]), timestamp=T0 + second, target=TARGET)
        if event_type is not None:
            store.save_event(Event(timestamp=T0 + 16, event_type=event_type, message="m", target=TARGET))
        (gap,) = find_gaps(store, [TARGET])
    assert (gap["from"], gap["to"], gap["seconds"]) == (T0 + 9, T0 + 17, 8.0)
    assert gap["reason"] == reason


def test_steady_scrapes_have_none_whatever_their_interval(tmp_path: Path) -> None:
    layout = Layout([Series("vllm:num_requests_running")])
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path / "s")) as store:
        for second in range(0, 600, 30):
            store.save_scrape(layout, array("d", [1.0]), timestamp=T0 + second, target=TARGET)
        assert find_gaps(store, [TARGET]) == []
