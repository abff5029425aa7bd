"""What readers share: bounded, never changed by those who were answered, never mistaken for something else."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from contextlib import closing
from sqlite3 import connect
from typing import Any

import numpy as np

from vllm_monitor.clock import ManualClock
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.persistence.samples.read_cache import ReadCache
from vllm_monitor.records import Layout, MetricKind, Series

OpenStore = Callable[..., PersistenceManager]
LAYOUT = Layout([Series("n_total", (), MetricKind.COUNTER), Series("g", (), MetricKind.GAUGE)])


def save(store: PersistenceManager, numbers: range, target: str = "http://a") -> None:
    for number in numbers:
        values = array("d", (number, -number))
        store.save_scrape(LAYOUT, values, timestamp=1000.0 + number, target=target)
    store.flush_all()


def values_of(store: PersistenceManager, **question: Any) -> list[Any]:
    (found,) = store.query_range("n_total", **question)
    return list(found.values.tolist())


def test_the_oldest_go_when_there_is_too_much() -> None:
    cache = ReadCache(most_bytes=100_000)
    for number in range(100):
        cache.put(number, str(number), 10_000)
        assert cache.get(0) == "0"  # asked for again and again, so it stays
        assert len(cache) <= 10
    assert cache.get(99) == "99"
    assert cache.get(1) is None


def test_what_is_put_twice_counts_once() -> None:
    cache = ReadCache(most_bytes=100_000)
    for _ in range(100):
        cache.put("same", "value", 20_000)
    cache.put("other", "value", 20_000)
    assert cache.get("same") == cache.get("other") == "value"


def test_something_huge_is_not_kept() -> None:
    cache = ReadCache(most_bytes=100_000)
    cache.put("small", 1, 10)
    cache.put("huge", 2, 90_000)
    assert cache.get("small") == 1
    assert cache.get("huge") is None


def test_answers_belong_to_the_caller(open_store: OpenStore) -> None:
    store = open_store(synchronous=True, clock=ManualClock(2000.0))
    save(store, range(200))
    store.run_maintenance(seal_all=True)
    questions: list[dict[str, Any]] = [{}, {"step_seconds": 1, "aggregation": "last"}]
    questions += [{"step_seconds": 60, "aggregation": name} for name in ("last", "increase")]
    questions += [{"start_time": 1050.0, "end_time": 1090.0}]
    for question in questions:
        expected = values_of(store, **question)
        for _ in range(2):
            (found,) = store.query_range("n_total", **question)
            found.values[:] = np.nan
            found.timestamps_ms[:] = 0
            assert values_of(store, **question) == expected


def test_a_number_that_is_given_again_names_another_block(open_store: OpenStore) -> None:
    store = open_store(synchronous=True, clock=ManualClock(2000.0))
    save(store, range(100))
    store.run_maintenance(seal_all=True)
    assert values_of(store) == list(range(100))
    with closing(connect(store.config.db_path)) as other, other:  # as another process would
        other.executescript("DELETE FROM blocks; DELETE FROM rollups; DELETE FROM sqlite_sequence")
    save(store, range(100, 200))
    store.run_maintenance(seal_all=True)
    assert values_of(store) == list(range(100, 200))
