"""Whatever verbs are given: it is stored and comes back, or it is refused with an error that has a hint."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import create_engine, text

from vllm_monitor.clock import ManualClock
from vllm_monitor.errors import ConfigurationError, ValueNotStorableError, VLLMMonitorError
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager, StorageBackend
from vllm_monitor.persistence.samples.sample_rows import SeriesName
from vllm_monitor.records import Event, Layout, LifecycleState, MetricKind, Series, StateCheckpoint

NOW = 1_790_000_000.0
CLOCK = ManualClock(NOW)
VALUES = array("d", [1.0])
GOOD = Layout([Series("a", (("k", "v"),), MetricKind.GAUGE)])


class Hostile:
    """Nothing can be done with it."""

    def __repr__(self) -> str:
        raise RuntimeError

    def __float__(self) -> float:
        raise RuntimeError

    def __bool__(self) -> bool:
        raise RuntimeError


ODD: list[Any] = [
    None, True, -1, 1.5, math.nan, math.inf, 10**400, "", "\ud800", "x", b"x", [], {}, [[1]], {"a": 1}, object(),
    Hostile(), np.array([1.0, 2.0]), np.array(1.5), np.float64(1.5), datetime.now(UTC), Decimal("sNaN"),
    LifecycleState.READY, Path("/x"),
]  # fmt: skip
QUESTIONS: dict[str, tuple[str, ...]] = {
    "get_metrics": ("metric_type", "metric_name", "start_time", "end_time", "limit", "target"),
    "query_range": ("metric_name", "target", "tags", "start_time", "end_time"),
    "latest": ("target", "metric_name"),
    "list_series": ("target",),
    "get_checkpoints": ("state", "start_time", "end_time", "limit", "target"),
    "get_predictions": ("failure_type", "outcome", "start_time", "limit"),
    "get_prediction_scores": ("failure_type", "start_time", "end_time", "target"),
    "get_mitigation_history": ("strategy_name", "outcome", "status", "limit"),
    "get_happy_paths": ("start_state", "end_state", "target", "limit"),
    "get_learning_data": ("learning_type", "start_time", "limit"),
    "get_alerts": ("name", "state", "limit"),
    "get_events": ("event_type", "limit", "end_time"),
    "load_plugins": ("target",),
}
CALLS: dict[str, Callable[[PersistenceManager, Any], Any]] = {
    "scrape_times": lambda m, odd: m.scrape_times(odd, odd),
    "recent_scrapes": lambda m, odd: m.recent_scrapes(odd, odd),
    "step": lambda m, odd: m.query_range("n", step_seconds=odd, aggregation="last"),
    "aggregation": lambda m, odd: m.query_range("n", step_seconds=60, aggregation=odd),
    "quantile": lambda m, odd: m.query_range("n", step_seconds=60, aggregation="quantile", quantile=odd),
    "tags": lambda m, odd: m.save_metric("custom", "n", 1.0, odd),
    "tag": lambda m, odd: m.save_metric("custom", "n", 1.0, {"k": odd}),
    "metadata": lambda m, odd: m.save_metric("custom", "n", 1.0, metadata=odd),
    "value": lambda m, odd: m.save_metric("custom", "n", odd),
    "names": lambda m, odd: m.save_metric(odd, odd, 1.0, target=odd),
    "timestamp": lambda m, odd: m.save_metric("custom", "n", 1.0, timestamp=odd),
    "layout": lambda m, odd: m.save_scrape(odd, VALUES, timestamp=NOW),
    "values": lambda m, odd: m.save_scrape(GOOD, odd, timestamp=NOW),
    "scrape_target": lambda m, odd: m.save_scrape(GOOD, VALUES, timestamp=NOW, target=odd),
    "source": lambda m, odd: m.save_scrape(GOOD, VALUES, timestamp=NOW, source=odd),
    "event": lambda m, odd: m.save_event(odd),
    "event_id": lambda m, odd: m.enqueue_event(Event(timestamp=NOW, event_type="e", message="", event_id=odd)),
    "event_data": lambda m, odd: m.enqueue_event(Event(timestamp=NOW, event_type="e", message="", data=odd)),
    "outcome": lambda m, odd: m.update_prediction_outcome(odd, "happened"),
    "outcome_name": lambda m, odd: m.update_prediction_outcome("p", odd),
    "is_durable": lambda m, odd: m.is_durable(odd),
    "path_checkpoints": lambda m, odd: m.enqueue_happy_path("h", "n", odd, {}, []),
    "path_profile": lambda m, odd: m.enqueue_happy_path("h", "n", [], odd, []),
    "path_guardrails": lambda m, odd: m.enqueue_happy_path("h", "n", [], {}, odd),
    "path_metadata": lambda m, odd: m.enqueue_happy_path("h", "n", [], {}, [], metadata=odd),
    "path_count": lambda m, odd: m.enqueue_happy_path_stats(odd, odd),
    "learning": lambda m, odd: m.enqueue_learning_data("t", odd, odd, odd, odd),
    "plugins": lambda m, odd: m.save_plugins(odd),
    "guardrails": lambda m, odd: m.save_guardrails(odd),
    "strategies": lambda m, odd: m.save_strategies(odd, expected_revisions=odd),
    "delete_plugin": lambda m, odd: m.delete_plugin(odd),
    "document_revisions": lambda m, odd: m.document_revisions(odd),
    "save_model_name": lambda m, odd: m.save_model(odd, 1, odd),
    "load_model": lambda m, odd: m.load_model(odd),
    "model_version": lambda m, odd: m.load_model("m", odd),
    "delete_model": lambda m, odd: m.delete_model(odd, odd),
    "export": lambda m, odd: m.export_data(object(), odd),  # type: ignore[arg-type]  # what is tested
    "import": lambda m, odd: m.import_data(odd),
}


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PersistenceManager]:
    config = PersistenceConfig(storage_dir=tmp_path_factory.mktemp("arguments"), backend=StorageBackend.SQLITE)
    with PersistenceManager(config, synchronous=True, clock=CLOCK) as opened:
        opened.save_metric("custom", "n", 1.0, {"a": "b"})
        opened.save_scrape(GOOD, VALUES, timestamp=NOW, target="t")
        opened.flush_all()
        yield opened


def refused_or_done(call: Callable[[], Any], what: str) -> None:
    try:
        call()
    except VLLMMonitorError as error:
        assert error.hint, what  # noqa: PT017  # refusing is one of two right answers


@pytest.mark.parametrize("verb", QUESTIONS)
def test_a_question_that_makes_no_sense_is_refused(manager: PersistenceManager, verb: str) -> None:
    for argument in QUESTIONS[verb]:
        for odd in ODD:
            arguments = {**({"metric_name": None} if verb == "query_range" else {}), argument: odd}
            refused_or_done(partial(getattr(manager, verb), **arguments), f"{verb} {argument}")


@pytest.mark.parametrize("name", CALLS)
def test_what_cannot_be_kept_is_refused(manager: PersistenceManager, name: str) -> None:
    for odd in ODD:
        refused_or_done(partial(CALLS[name], manager, odd), name)


def test_what_was_accepted_is_written_and_read(manager: PersistenceManager) -> None:
    assert manager.flush_all()
    assert manager.get_statistics()["dropped"].get("unwritable", 0) == 0
    assert manager.latest()
    manager.run_maintenance(seal_all=True)
    assert manager.list_series()


@pytest.mark.parametrize("limit", [True, 1.0, -1, math.nan, math.inf, "5", 10**400])
def test_limits_are_whole_numbers(manager: PersistenceManager, limit: Any) -> None:
    for ask in (manager.get_metrics, manager.get_events):
        with pytest.raises(ConfigurationError, match="limit"):
            ask(limit=limit)


def test_bounds_of_time(manager: PersistenceManager) -> None:
    verbs: list[Any] = [manager.get_metrics, manager.get_events, manager.get_prediction_scores]
    for ask in verbs:
        with pytest.raises(ConfigurationError, match="timestamp"):
            ask(start_time=datetime.now(UTC))
        for unbounded in (math.inf, 1e300):
            ask(start_time=-unbounded, end_time=unbounded)
    assert manager.get_metrics(metric_name="a", start_time=-1e300, end_time=1e300)
    assert not manager.get_metrics(metric_name="a", start_time=1e300)


@pytest.mark.parametrize("backend", [StorageBackend.SQLITE, StorageBackend.JSON])
def test_tags_of_any_accepted_type_work_everywhere(tmp_path: Path, backend: StorageBackend) -> None:
    accepted: list[Any] = ["1", 1, 1.0, True, None, math.nan, "\ud800"]
    config = PersistenceConfig(storage_dir=tmp_path / "store", backend=backend)
    with PersistenceManager(config, synchronous=True, clock=CLOCK) as manager:
        for number, value in enumerate(accepted):
            manager.save_metric("custom", "n", float(number), {"k": value}, timestamp=NOW)

        def check() -> None:
            found = {one["value"]: one["tags"]["k"] for one in manager.get_metrics()}
            assert [repr(found[float(number)]) for number in range(len(accepted))] == list(map(repr, accepted))
            assert len(manager.list_series()) == len(manager.latest()) == len(accepted)
            for number, value in enumerate(accepted):
                (data,) = manager.query_range("n", tags={"k": value})
                assert data.values.tolist() == [number]

        check()
        manager.flush_all()
        check()
        manager.run_maintenance(seal_all=True)
        check()
        manager.export_data(tmp_path / "archive")
    with PersistenceManager(
        PersistenceConfig(storage_dir=tmp_path / "other"), synchronous=True, clock=CLOCK
    ) as manager:
        manager.import_data(tmp_path / "archive")
        check()


def test_a_store_that_holds_a_list_as_a_tag_can_be_sealed_listed_and_exported(tmp_path: Path) -> None:
    config = PersistenceConfig(storage_dir=tmp_path / "store")
    with PersistenceManager(config, synchronous=True, clock=CLOCK) as manager:
        manager.save_metric("custom", "n", 1.0, {"k": "v"}, timestamp=NOW)
    name = SeriesName("custom", "n", '{"k":[1]}', MetricKind.UNKNOWN.value)
    engine = create_engine(f"sqlite:///{config.db_path}")
    with engine.begin() as connection:
        connection.execute(
            text("update series set tags = :tags, fingerprint = :print"), {"tags": name.tags, "print": name.fingerprint}
        )
    engine.dispose()
    with PersistenceManager(config, synchronous=True, clock=CLOCK) as manager:
        for _ in range(2):
            assert [str(series) for series in manager.list_series()] == ['n{k="[1]"}']
            assert manager.latest()[0]["tags"] == {"k": [1]}
            assert len(manager.query_range("n", tags={"k": [1]}, step_seconds=60)) == 1
            manager.run_maintenance(seal_all=True)
        manager.export_data(tmp_path / "archive")


def test_containers_are_no_tags(manager: PersistenceManager) -> None:
    odd: list[Any] = [{"k": [1]}, {"k": {}}, {"k": b"x"}, {5: "x"}, ["k"]]
    for tags in odd:
        with pytest.raises(ValueNotStorableError, match="tag"):
            manager.save_metric("custom", "n", 1.0, tags)


ODD_SERIES: list[Any] = [
    Series(*parts) for parts in (("a", (), "bogus"), (5,), ("a", (("k", None),)), ("a", "kv"), ("a", ((1, "v"),)))
]


@pytest.mark.parametrize("series", ODD_SERIES)
def test_a_scrape_of_odd_series_is_refused(manager: PersistenceManager, series: Series) -> None:
    for _ in range(2):
        with pytest.raises(ValueNotStorableError, match="series of a scrape"):
            manager.save_scrape(Layout([series]), VALUES, timestamp=NOW)


@pytest.mark.parametrize("value", ["1.50", "1E+3", "0.10E1", "-0"])
def test_a_decimal_is_the_same_from_memory_and_from_disk(tmp_path: Path, value: str) -> None:
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path), synchronous=True, clock=CLOCK) as manager:
        manager.save_metric("custom", "n", Decimal(value))
        in_memory = manager.get_metrics()[0]["value"]
        manager.flush_all()
        assert repr(manager.get_metrics()[0]["value"]) == repr(in_memory)
        assert in_memory == Decimal(value)


def checkpoint_with(value: Any) -> StateCheckpoint:
    return StateCheckpoint(NOW, LifecycleState.READY, None, None, {"a": value}, {}, {}, metadata={"m": value})


def test_what_contains_itself_is_refused_or_shown(manager: PersistenceManager) -> None:
    around: list[Any] = ["hf_abcdefghijklmnopqrstuvwxyz0123456789"]
    around += [around, around]  # both ways round must not take for ever
    deep: Any = "end"
    for _ in range(900):
        deep = [deep]
    for value in (around, deep):
        with pytest.raises(ValueNotStorableError, match="nested too deeply"):
            manager.save_checkpoint(checkpoint_with(value))
        with pytest.raises(ValueNotStorableError, match="nested too deeply"):
            manager.save_model("deep", {"a": value})
        manager.enqueue_checkpoint(checkpoint_with(value))
        manager.flush_all()
        stored = manager.get_checkpoints(limit=1)[0]
        assert stored.arguments["a"]
        assert "hf_abc" not in str(stored)
