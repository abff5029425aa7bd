"""Whatever happens to the samples on their way into blocks and roll-ups, the answers stay the same."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.persistence.sample_model import (
    BEGIN_MS,
    TARGET,
    Model,
    as_dict,
    check_buckets,
    check_samples,
    numbers,
    plain_numbers,
    steps,
)

from vllm_monitor.clock import ManualClock
from vllm_monitor.errors import ConfigurationError
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import Layout, MetricKind, Series

OpenStore = Callable[..., PersistenceManager]
DAY_SECONDS = 86_400.0
MINUTES = 180
LENIENT = settings(
    max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


class Played:
    """A store to which the steps of an example have happened."""

    def __init__(self, folder: Path, happened: list[tuple[Any, ...]], **config: Any) -> None:
        self._config = PersistenceConfig(
            storage_dir=folder, block_scrapes=5, metrics_retention_days=36500, cold_after_seconds=DAY_SECONDS, **config
        )
        self.clock = ManualClock(BEGIN_MS / 1000)
        self.store = self._open()
        self.model = Model()
        for step in happened:
            self.play(step)

    def play(self, step: tuple[Any, ...]) -> None:
        if step[0] == "flush":
            self.store.flush_all()
        elif step[0] == "maintain":
            self.store.run_maintenance()
        elif step[0] == "seal":
            self.store.run_maintenance(seal_all=True)
        elif step[0] == "reopen":
            self.store.close()
            self.store = self._open()
        else:
            self.model.save(self.store, step)

    def grow_cold(self) -> None:
        """Days later everything is sealed and joined."""
        self.clock.advance(5 * DAY_SECONDS)
        self.store.run_maintenance(seal_all=True)
        self.store.run_maintenance()

    def _open(self) -> PersistenceManager:
        return PersistenceManager(self._config, synchronous=True, clock=self.clock)


@contextmanager
def played(factory: pytest.TempPathFactory, happened: list[tuple[Any, ...]], **config: Any) -> Iterator[Played]:
    one = Played(factory.mktemp("store"), happened, **config)
    try:
        yield one
    finally:
        one.store.close()


ANY_SECONDS = st.sampled_from([0.0, 0.001, 1.0, 2.5, 17.0, 59.0, 61.0, 400.0, -1.0, -300.0, 7200.0])
FORWARD_SECONDS = st.sampled_from([0.5, 1.0, 17.0, 59.0, 61.0, 250.0, 400.0, 3000.0])


@given(steps(numbers, ANY_SECONDS), st.booleans())
@LENIENT
def test_samples_are_what_they_were(
    tmp_path_factory: pytest.TempPathFactory, happened: list[tuple[Any, ...]], compress: bool
) -> None:
    samples_are_what_they_were(tmp_path_factory, happened, compress)


@pytest.mark.slow
@given(steps(numbers, ANY_SECONDS), st.booleans())
@settings(LENIENT, max_examples=30)
def test_samples_are_what_they_were_in_many_ways(
    tmp_path_factory: pytest.TempPathFactory, happened: list[tuple[Any, ...]], compress: bool
) -> None:
    samples_are_what_they_were(tmp_path_factory, happened, compress)


def samples_are_what_they_were(
    tmp_path_factory: pytest.TempPathFactory, happened: list[tuple[Any, ...]], compress: bool
) -> None:
    with played(tmp_path_factory, happened, compression_enabled=compress) as one:
        check_samples(one.store, one.model)
        one.play(("seal",))
        check_samples(one.store, one.model)
        one.grow_cold()
        check_samples(one.store, one.model)


@given(steps(plain_numbers, st.one_of(FORWARD_SECONDS, ANY_SECONDS)))
@LENIENT
def test_aggregations_are_those_of_the_definition(
    tmp_path_factory: pytest.TempPathFactory, happened: list[tuple[Any, ...]]
) -> None:
    aggregations_are_those_of_the_definition(tmp_path_factory, happened)


@pytest.mark.slow
@given(st.one_of(steps(plain_numbers, FORWARD_SECONDS), steps(plain_numbers, ANY_SECONDS)))
@settings(LENIENT, max_examples=30)
def test_aggregations_are_those_of_the_definition_in_many_ways(
    tmp_path_factory: pytest.TempPathFactory, happened: list[tuple[Any, ...]]
) -> None:
    aggregations_are_those_of_the_definition(tmp_path_factory, happened)


def aggregations_are_those_of_the_definition(
    tmp_path_factory: pytest.TempPathFactory, happened: list[tuple[Any, ...]]
) -> None:
    with played(tmp_path_factory, happened) as one:
        for _ in range(2):
            for aggregation in ("last", "min", "max", "sum", "avg", "increase", "rate"):
                for step_ms in (7_000, 60_000, 600_000):
                    exact = aggregation not in {"avg", "rate"}
                    check_buckets(one.store, one.model, step_ms, aggregation, exact=exact)
            one.grow_cold()


def test_hostile_values_in_steps(tmp_path: Path) -> None:
    values = [1.0, math.nan, 3.0, math.inf, 2.0, -math.inf, math.nan, math.nan, 5.0, 4.0]
    happened = [("scrape", 0, 20.0, [value] * 5) for value in values] + [("metric", "x", 1.0, math.nan, False)]
    one = Played(tmp_path, happened)
    for _ in range(2):
        for aggregation in ("last", "min", "max", "increase"):
            check_buckets(one.store, one.model, 60_000, aggregation)
        one.grow_cold()
    one.store.close()


def counting(store: PersistenceManager, minutes: int, begin_ms: int = BEGIN_MS) -> None:
    """A counter that grows by 2 every 10 s, a gauge, and a histogram."""
    layout = Layout(
        [
            Series("c_total", (), MetricKind.COUNTER),
            Series("g", (), MetricKind.GAUGE),
            *(Series("h_bucket", (("le", le), ("model", "m")), MetricKind.HISTOGRAM) for le in ("1", "2", "+Inf")),
        ]
    )
    for tick in range(minutes * 6):
        values = array("d", [2.0 * tick, math.sin(tick), tick, 3.0 * tick, 4.0 * tick])
        store.save_scrape(layout, values, timestamp=begin_ms / 1000 + 10 * tick, target=TARGET)


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PersistenceManager]:
    """Three hours, sealed and joined, and some minutes that are not."""
    begin_ms = BEGIN_MS // 86_400_000 * 86_400_000
    clock = ManualClock(begin_ms / 1000 + 4 * DAY_SECONDS)
    config = PersistenceConfig(
        storage_dir=tmp_path_factory.mktemp("day"), block_scrapes=250, cold_after_seconds=DAY_SECONDS
    )
    with PersistenceManager(config, synchronous=True, clock=clock) as store:
        counting(store, MINUTES, begin_ms)
        store.run_maintenance()
        yield store


def raw_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_monitor.persistence.samples.range_query.LONG_RANGE_MS", 1 << 62)


def test_roll_ups_say_the_same_as_samples(day: PersistenceManager, monkeypatch: pytest.MonkeyPatch) -> None:
    questions: list[dict[str, Any]] = [
        {"metric_name": name, "aggregation": aggregation, "step_seconds": step}
        for step in (60, 300, 600)
        for name, aggregations in (("c_total", ("last", "rate", "increase")), ("g", ("last", "min", "max", "avg")))
        for aggregation in aggregations
    ] + [{"metric_name": "h", "quantile": quantile, "step_seconds": 300} for quantile in (0.0, 0.5, 0.9, 1.0)]
    assert day.get_statistics()["counts"]["rollups"] >= 2
    rolled = [day.query_range(**question) for question in questions]
    raw_only(monkeypatch)
    for question, answer in zip(questions, rolled, strict=True):
        (expected,), (found,) = day.query_range(**question), answer
        assert found.series == expected.series
        np.testing.assert_array_equal(found.timestamps_ms, expected.timestamps_ms)
        np.testing.assert_allclose(found.values, expected.values, rtol=1e-12, err_msg=str(question))
        assert len(found) == MINUTES * 60 // question["step_seconds"]


def test_growth_needs_no_look_outside(day: PersistenceManager) -> None:
    """A bucket is the same in whatever range it is asked for."""
    begin = BEGIN_MS // 86_400_000 * 86_400
    (whole,) = day.query_range("c_total", aggregation="increase", step_seconds=60)
    (part,) = day.query_range(
        "c_total", aggregation="increase", step_seconds=60, start_time=begin + 7205, end_time=begin + 7300
    )
    assert as_dict(part) == {(begin + second) * 1000: 12.0 for second in (7200, 7260)}
    assert as_dict(part).items() <= as_dict(whole).items()
    assert whole.values.sum() == 2.0 * (MINUTES * 6 - 1)


def test_a_quantile_by_hand(day: PersistenceManager) -> None:
    """Of 4 observations 1 is below 1, 2 lie between 1 and 2, 1 above."""
    (half,) = day.query_range("h", target=TARGET, tags={"model": "m"}, quantile=0.5, step_seconds=60)
    assert half.series == Series("h", (("model", "m"),))
    assert set(half.values.tolist()) == {1.5}
    (most,) = day.query_range("h_bucket", quantile=0.99, step_seconds=60)
    assert set(most.values.tolist()) == {2.0}  # nothing is known above
    (least,) = day.query_range("h_bucket", quantile=0.125, step_seconds=60)
    assert set(least.values.tolist()) == {0.5}


@pytest.mark.parametrize(
    "wrong",
    [
        {"aggregation": "avg"},
        {"quantile": 0.5},
        {"step_seconds": 0},
        {"step_seconds": math.nan},
        {"step_seconds": 5, "aggregation": "median"},
        {"step_seconds": 5, "aggregation": "quantile"},
        {"step_seconds": 5, "aggregation": "avg", "quantile": 0.5},
        {"step_seconds": 5, "quantile": 1.5},
    ],
)
def test_questions_without_a_meaning(open_store: OpenStore, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        open_store(synchronous=True).query_range("x", **wrong)


def test_a_gap_is_nobodys_growth(tmp_path: Path) -> None:
    """Five minutes apart are neighbours, six are not; within a block and between two."""
    happened: list[tuple[Any, ...]] = [("scrape", 0, seconds, [value] * 5) for seconds, value in (
        (0.0, 1.0), (300.0, 5.0), (360.0, 100.0), (30.0, 101.0), (361.0, 500.0), (10.0, 3.0), (400.0, 4.0)
    )]  # fmt: skip
    one = Played(tmp_path, happened)
    for _ in range(2):
        check_buckets(one.store, one.model, 60_000, "increase")
        (found,) = one.store.query_range("a_total", step_seconds=60, aggregation="increase")
        assert found.values.sum() == 4 + 1 + 3
        one.grow_cold()
    one.store.close()


def test_equal_times_of_alternating_layouts_stay_in_order_of_arrival(tmp_path: Path) -> None:
    happened = [("scrape", number % 2, 0.0, [float(number)] * 5) for number in range(13)]
    one = Played(tmp_path, happened)
    for step in ("flush", "maintain", "seal"):
        check_samples(one.store, one.model)
        one.play((step,))
    check_samples(one.store, one.model)
    one.store.close()
