"""What the store must answer about samples, told by plain Python lists; and how to make it hard for the store."""

from __future__ import annotations

import math
import struct
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.persistence.results import SeriesData
from vllm_monitor.persistence.samples.summaries import is_counter
from vllm_monitor.records import Layout, MetricKind, Series

BEGIN_MS = 1_700_000_000_000
TARGET = "http://127.0.0.1:8000"
A, B, C, LOW, HIGH = (
    Series("a_total", (), MetricKind.COUNTER),
    Series("gauge", (("x", "1"),), MetricKind.GAUGE),
    Series("late_total"),
    Series("h_bucket", (("le", "1"),), MetricKind.HISTOGRAM),
    Series("h_bucket", (("le", "+Inf"),), MetricKind.HISTOGRAM),
)
LAYOUTS = [
    Layout([A, B, LOW, HIGH]),
    Layout([A, C, B, LOW, HIGH]),
    Layout([HIGH, B]),
    Layout([A, A, C]),  # a faulty page
]
numbers = st.one_of(
    st.integers(0, 40).map(float), st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 0.1, 1e300]), st.floats()
)
plain_numbers = st.integers(0, 50).map(float)


def steps(values: st.SearchStrategy[float], seconds: st.SearchStrategy[float]) -> st.SearchStrategy[list[Any]]:
    """Things that happen to a store."""
    scrape = st.tuples(
        st.just("scrape"), st.integers(0, len(LAYOUTS) - 1), seconds, st.lists(values, min_size=5, max_size=5)
    )
    metric = st.tuples(st.just("metric"), st.sampled_from(["x", "y_total"]), seconds, values, st.booleans())
    other = st.tuples(st.sampled_from(["flush", "maintain", "seal", "reopen"]))
    return st.lists(st.one_of(scrape, scrape, scrape, metric, other), min_size=3, max_size=45)


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


@dataclass(slots=True)
class Model:
    """Every sample by series, in order of arrival."""

    samples: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    series: dict[str, Series] = field(default_factory=dict)
    time_ms: int = BEGIN_MS

    def save(self, store: PersistenceManager, step: tuple[Any, ...]) -> None:
        """Save what the step says, here and there."""
        kind, what, seconds, *rest = step
        self.time_ms += round(seconds * 1000)
        if kind == "scrape":
            layout = LAYOUTS[what]
            values = rest[0][: len(layout)]
            store.save_scrape(layout, array("d", values), timestamp=self.time_ms / 1000, target=TARGET)
            for series, value in zip(layout.series, values, strict=True):
                self._add(series, value)
        else:
            metadata = {"n": len(self.samples)} if rest[1] else None
            store.save_metric(
                "custom", what, rest[0], {"k": "v"}, metadata, timestamp=self.time_ms / 1000, target=TARGET
            )
            self._add(Series(what, (("k", "v"),)), rest[0])

    def in_order(self, name: str) -> list[tuple[int, float]]:
        """The samples of a series by time, then by arrival."""
        return sorted(self.samples[name], key=lambda sample: sample[0])

    def scrape_count(self) -> int:
        return sum(map(len, self.samples.values()))

    def buckets(self, name: str, step_ms: int, aggregation: str) -> dict[int, float]:
        """Bucket start to value, from the definition."""
        samples = self.in_order(name)
        if aggregation in {"rate", "increase"}:
            samples = [(at, value) for at, value in samples if not math.isnan(value)]
        by_bucket: dict[int, list[float]] = defaultdict(list)
        grown: dict[int, float] = defaultdict(float)
        for number, (at, value) in enumerate(samples):
            bucket = at // step_ms * step_ms
            by_bucket[bucket].append(value)
            grown[bucket] += 0.0
            if number:
                before_at, before = samples[number - 1]
                if at // 60_000 - before_at // 60_000 <= 5:
                    grown[bucket] += value - before if value >= before else value
        if aggregation == "increase":
            return dict(grown)
        if aggregation == "rate":
            return {
                bucket: grown[bucket] / (_grown_for_ms(before, bucket, step_ms) / 1000)
                for before, bucket in zip([None, *grown], grown, strict=False)
            }
        return {bucket: _value(aggregation, values) for bucket, values in by_bucket.items()}

    def _add(self, series: Series, value: float) -> None:
        self.samples[str(series)].append((self.time_ms, value))
        self.series[str(series)] = series


def _grown_for_ms(before: int | None, bucket: int, step_ms: int) -> int:
    """From the bucket before it with samples, unless no sample of that can be a neighbour."""
    if before is None or bucket // 60_000 - before // 60_000 - max(0, step_ms // 60_000 - 1) > 5:
        return step_ms
    return bucket - before


def _value(aggregation: str, values: list[float]) -> float:
    if aggregation == "last":
        return values[-1]
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan
    if aggregation == "min":
        return min(known)
    if aggregation == "max":
        return max(known)
    total = 0.0
    for value in known:
        total += value
    return total if aggregation == "sum" else total / len(known)


def check_samples(store: PersistenceManager, model: Model) -> None:
    """Every raw answer is the model's."""
    stored = {str(data.series): data for data in store.query_range(None, target=TARGET)}
    assert stored.keys() == model.samples.keys()
    for name, data in stored.items():
        expected = model.in_order(name)
        assert data.timestamps_ms.tolist() == [at for at, _ in expected]
        assert [bits(value) for value in data.values.tolist()] == [bits(value) for _, value in expected]
    everything = store.get_metrics(limit=None)
    times = [sample["timestamp"] for sample in everything]
    assert times == sorted(times, reverse=True)
    by_series = defaultdict(list)
    for sample in reversed(everything):
        series = Series(sample["metric_name"], tuple(sorted(sample["tags"].items())))
        by_series[str(series)].append((round(sample["timestamp"] * 1000), bits(sample["value"])))
    assert by_series == {name: [(at, bits(v)) for at, v in model.in_order(name)] for name in model.samples}
    assert repr(store.get_metrics(limit=4)) == repr(everything[:4])
    newest_ms = max((at for samples in model.samples.values() for at, _ in samples), default=None)
    assert store.get_statistics()["newest"] == (None if newest_ms is None else newest_ms / 1000)
    assert store.get_statistics()["counts"]["metrics"] == len(everything)
    assert store.health().damaged_rows == 0


def check_buckets(
    store: PersistenceManager, model: Model, step_ms: int, aggregation: str, *, exact: bool = True
) -> None:
    """Every aggregated answer is the model's."""
    answers = store.query_range(None, target=TARGET, step_seconds=step_ms / 1000, aggregation=aggregation)
    found = {str(data.series): as_dict(data) for data in answers}
    for name, series in model.series.items():
        if aggregation in {"rate", "increase"} and not is_counter(series):
            continue
        expected = model.buckets(name, step_ms, aggregation)
        assert found.get(name, {}).keys() == expected.keys(), (name, aggregation)
        for bucket, value in expected.items():
            answer = found[name][bucket]
            if exact:
                assert answer == value or (math.isnan(answer) and math.isnan(value)), (name, aggregation, bucket)
            else:
                assert math.isclose(answer, value, rel_tol=1e-9) or (math.isnan(answer) and math.isnan(value))


def as_dict(data: SeriesData) -> dict[int, float]:
    return dict(zip(data.timestamps_ms.tolist(), data.values.tolist(), strict=True))
