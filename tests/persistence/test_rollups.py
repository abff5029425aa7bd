"""Roll-ups: what is kept when the samples are gone."""

from __future__ import annotations

import math
import sqlite3
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_monitor.clock import ManualClock
from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.persistence.samples.block_rows import RollupRow
from vllm_monitor.persistence.samples.blocks.codec import BlockMethod
from vllm_monitor.persistence.samples.matrices import Matrix, join_matrices
from vllm_monitor.persistence.samples.rollup_codec import Form, Rollup, RollupReader, encode_rollup
from vllm_monitor.persistence.samples.rollup_joining import OldRollup, coarsen, join_rollups, joinable, read_rollup
from vllm_monitor.persistence.samples.rollups import rollup_of_matrix
from vllm_monitor.records import Layout, MetricKind, Series

OpenStore = Callable[..., PersistenceManager]
SERIES = [
    Series("a_total"),
    Series("g", (), MetricKind.GAUGE),
    Series("h_bucket", (("le", "1"),), MetricKind.HISTOGRAM),
    Series("b_sum"),
]
DAY_SECONDS = 86_400
FIELDS = ("last", "correction", "low", "high", "total", "count")
values = st.one_of(st.integers(0, 1000).map(float), st.sampled_from([math.nan, math.inf, -0.0, 0.5]))
gaps = st.sampled_from([0, 1, 15_000, 59_000, 61_000, 310_000, 500_000])


@st.composite
def matrices(draw: st.DrawFn, cells: st.SearchStrategy[float] = values) -> Matrix:
    rows = draw(st.integers(2, 25))
    times = 1_700_000_000_000 + np.cumsum(draw(st.lists(gaps, min_size=rows, max_size=rows)))
    table = draw(st.lists(st.lists(cells, min_size=4, max_size=4), min_size=rows, max_size=rows))
    there = np.array(draw(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=rows, max_size=rows)))
    present = there if draw(st.booleans()) else None
    return Matrix((1, 2, 3, 4), times, np.arange(rows), np.array(table).view(np.uint64), present)


def assert_same(one: Rollup, other: Rollup) -> None:
    """All that matters: cells that are there, and of each column what its form keeps."""
    np.testing.assert_array_equal(one.bucket_ms, other.bucket_ms)
    np.testing.assert_array_equal(one.present, other.present)
    np.testing.assert_array_equal(one.forms, other.forms)
    for column, form in enumerate(one.forms.tolist()):
        there = one.present[:, column]
        if there.any():
            assert one.first[column] == other.first[column] or math.isnan(one.first[column])
        kept = FIELDS if form == Form.GAUGE else ("last", "correction")
        for name in kept:
            mine, others = getattr(one, name)[there, column], getattr(other, name)[there, column]
            np.testing.assert_array_equal(mine, others, err_msg=f"{name} of {SERIES[column]}")


@given(matrices(), st.sampled_from(BlockMethod))
@settings(max_examples=40, deadline=None)
def test_a_payload_comes_back(matrix: Matrix, method: BlockMethod) -> None:
    rollup = rollup_of_matrix(matrix, SERIES)
    payload = encode_rollup(rollup, SERIES, method)
    gauges = rollup.forms == Form.GAUGE
    read = read_rollup(payload, 4)
    assert_same(rollup, read)
    reader = RollupReader(lambda offset, length: payload[offset : offset + length], len(payload))
    some = reader.read([3, 1])
    np.testing.assert_array_equal(some.last, read.last[:, [3, 1]])
    np.testing.assert_array_equal(some.forms, rollup.forms[[3, 1]])
    assert gauges[1]


@given(matrices())
@settings(max_examples=20, deadline=None)
def test_damage_to_a_payload_is_found(matrix: Matrix) -> None:
    payload = bytearray(encode_rollup(rollup_of_matrix(matrix, SERIES), SERIES, BlockMethod.ZLIB))
    for at in range(0, len(payload), max(1, len(payload) // 40)):
        harmed = bytearray(payload)
        harmed[at] ^= 0x10
        with pytest.raises(StoreDamagedError):
            read_rollup(bytes(harmed), 4)


def old(rollup: Rollup) -> OldRollup:
    row = RollupRow(0, 60, 0, 1, 1, 1, int(rollup.bucket_ms[0]), int(rollup.bucket_ms[-1]), 1, 1, 0, b"")
    return OldRollup(row, (1, 2, 3, 4), rollup)


@given(matrices(st.integers(0, 50).map(float)), st.integers(1, 24))
@settings(max_examples=60, deadline=None)
def test_joined_parts_are_the_whole(matrix: Matrix, cut: int) -> None:
    """Cut anywhere (also within a minute, at a reset or a gap): joined again, it is as if never cut."""
    cut = min(cut, len(matrix.times_ms) - 1)
    parts = [
        Matrix(
            matrix.series_ids,
            matrix.times_ms[rows],
            matrix.sequences[rows],
            matrix.bits[rows],
            None if matrix.present is None else matrix.present[rows],
        )
        for rows in (slice(None, cut), slice(cut, None))
    ]
    assert join_matrices(parts).is_same_as(matrix)
    whole = rollup_of_matrix(matrix, SERIES)
    (members,) = joinable([old(rollup_of_matrix(part, SERIES)) for part in parts])
    ids, joined = join_rollups(members)
    assert ids == matrix.series_ids
    assert_same(whole, joined)
    coarse = coarsen(whole, 600)
    assert set((coarse.bucket_ms % 600_000).tolist()) == {0}
    assert_same(coarse, coarsen(joined, 600))
    for column in np.flatnonzero(whole.forms == Form.GAUGE):
        there, coarse_there = whole.present[:, column], coarse.present[:, column]
        assert whole.count[there, column].sum() == coarse.count[coarse_there, column].sum()


def test_series_kept_in_different_ways_are_not_joined() -> None:
    plain = Matrix((1, 2, 3, 4), np.arange(3) * 1000, np.arange(3), np.ones((3, 4)).view(np.uint64))
    odd = plain.bits.copy()
    odd.view(np.float64)[1, 0] = math.nan
    rollups = [
        rollup_of_matrix(Matrix((1, 2, 3, 4), np.arange(3), np.arange(3), bits), SERIES) for bits in (plain.bits, odd)
    ]
    assert len(list(joinable([old(rollup) for rollup in rollups]))) == 2


LAYOUT = Layout([*SERIES[:3], Series("h_bucket", (("le", "+Inf"),), MetricKind.HISTOGRAM)])
QUESTIONS: list[dict[str, Any]] = [
    {"metric_name": "a_total", "aggregation": "increase"},
    {"metric_name": "a_total", "aggregation": "rate"},
    {"metric_name": "a_total", "aggregation": "last"},
    *({"metric_name": "g", "aggregation": name} for name in ("avg", "min", "max", "sum", "last")),
    {"metric_name": "h", "quantile": 0.9},
    {"metric_name": "mine", "aggregation": "max"},
]


def test_they_outlive_the_samples(open_store: OpenStore) -> None:
    """Samples go after 30 days, minutes after 90, ten minutes after two years; the answers stay."""
    begin = 1_700_000_000 // DAY_SECONDS * DAY_SECONDS
    clock = ManualClock(begin + DAY_SECONDS / 2)
    store = open_store(synchronous=True, clock=clock, block_scrapes=100)
    for tick in range(350):
        at = begin + 20.0 * tick
        store.save_scrape(LAYOUT, array("d", [tick % 200, math.sin(tick), tick, 2 * tick]), timestamp=at, target="t")
        store.save_metric("custom", "mine", tick, {"a": "b"}, timestamp=at, target="t")
    expected = [store.query_range(**question, step_seconds=600) for question in QUESTIONS]
    for days, counted in ((0, "metrics"), (3, "metrics"), (40, "rollups"), (100, "rollups")):
        clock.set_now(begin + days * DAY_SECONDS)
        store.run_maintenance(seal_all=True)
        store.cleanup_old_data()  # unlike by itself, when asked it believes a clock that leaps
        for question, answers in zip(QUESTIONS, expected, strict=True):
            found = store.query_range(**question, step_seconds=600)
            assert [one.series for one in found] == [one.series for one in answers], (days, question)
            for one, answer in zip(found, answers, strict=True):
                np.testing.assert_array_equal(one.timestamps_ms, answer.timestamps_ms)
                np.testing.assert_allclose(one.values, answer.values, rtol=1e-9, err_msg=f"{days} {question}")
        counts = store.get_statistics()["counts"]
        assert counts[counted] > 0
        assert (counts["metrics"] == 0) == (days >= 40)
    connection = sqlite3.connect(store.config.db_path)
    assert {step for (step,) in connection.execute("SELECT DISTINCT step_seconds FROM rollups")} == {600}
    connection.close()
    assert store.query_range("a_total") == []


def test_late_samples_come_from_samples(open_store: OpenStore) -> None:
    """A sample that arrives after its minute was rolled up changes the answer all the same."""
    begin = 1_700_000_000 // DAY_SECONDS * DAY_SECONDS
    store = open_store(synchronous=True, clock=ManualClock(begin + DAY_SECONDS / 2))
    for tick in range(400):
        if tick % 100 != 50:
            store.save_metric("custom", "c_total", tick, timestamp=begin + 20.0 * tick)
    store.run_maintenance(seal_all=True)
    for tick in range(50, 400, 100):
        store.save_metric("custom", "c_total", 10 * tick, timestamp=begin + 20.0 * tick)
    for _ in range(2):
        (found,) = store.query_range("c_total", step_seconds=60, aggregation="max")
        assert found.values[50 // 3] == 500
        (found,) = store.query_range("c_total", step_seconds=60, aggregation="increase")
        assert found.values.sum() == 399 + sum(10 * tick for tick in range(50, 400, 100))
        store.run_maintenance(seal_all=True)
