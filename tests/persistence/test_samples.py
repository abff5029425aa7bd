from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_monitor.clock import ManualClock
from vllm_monitor.errors import ConfigurationError, StoreUnavailableError, ValueNotStorableError
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import Event, Layout, MetricKind, MetricType, Series

OpenStore = Callable[..., PersistenceManager]
HOST = "http://127.0.0.1:8000"
PAGE = Layout(
    [
        Series("vllm:prompt_tokens_total", (("engine", "0"),), MetricKind.COUNTER),
        Series("vllm:num_requests_running", (("engine", "0"),), MetricKind.GAUGE),
        Series("vllm:num_requests_running", (("engine", "1"),), MetricKind.GAUGE),
        Series("process_resident_memory_bytes"),
    ]
)


def page(*values: float) -> array[float]:
    return array("d", values)


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def test_a_sample_is_visible_at_once_and_after_reopening(open_store: OpenStore) -> None:
    store = open_store(clock=ManualClock(1000.0))
    store.save_metric("custom", "queue", 3, {"b": "2", "a": "1"}, {"who": ("x", Path("/p"))})
    expected = {
        "timestamp": 1000.0,
        "metric_type": "custom",
        "metric_name": "queue",
        "value": 3,
        "tags": {"a": "1", "b": "2"},
        "metadata": {"who": ("x", Path("/p"))},
        "target": "",
    }
    assert store.get_metrics() == [expected]
    assert store.flush_all()
    assert store.get_metrics() == [expected]
    store.close()
    assert open_store().get_metrics() == [expected]


@pytest.mark.parametrize(
    "value",
    [1, 2**60, True, 0.1, -0.0, math.inf, -math.inf, math.nan, 5e-324, Decimal("0.5"), Fraction(1, 4), -(2**1000)],
    ids=range(12),
)
def test_values_come_back_with_their_type(open_store: OpenStore, value: Any) -> None:
    store = open_store()
    store.save_metric("custom", "x", value)
    for _ in range(2):
        (sample,) = store.get_metrics()
        assert type(sample["value"]) is type(value)
        assert bits(sample["value"]) == bits(value)
        store.flush_all()
    store.close()
    assert bits(open_store().get_metrics()[0]["value"]) == bits(value)


def test_what_cannot_come_back_is_refused(open_store: OpenStore) -> None:
    store = open_store()
    refused: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        (("custom", "x", 2**53 + 1), {}),
        (("custom", "x", "5"), {}),
        (("custom", "x", 1.0, {"a": object()}), {}),
        (("custom", "x", 1.0, None, {"a": object()}), {}),
        (("custom", "x", 1.0, ["a"]), {}),
        (("custom", 5, 1.0), {}),
        (("custom", "x", 1.0), {"timestamp": math.nan}),
        (("custom", "x", 1.0), {"target": None}),
    ]
    for arguments, named in refused:
        with pytest.raises(ValueNotStorableError):
            store.save_metric(*arguments, **named)
    for values in (page(1.0), [1.0] * 4, array("f", [1.0] * 4)):
        with pytest.raises(ValueNotStorableError):
            store.save_scrape(PAGE, values, timestamp=1.0)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(ValueNotStorableError):
        store.save_scrape(PAGE, page(1, 2, 3, 4), timestamp=math.inf)
    assert store.get_metrics() == []


def test_tags_that_compare_equal_are_still_different(open_store: OpenStore) -> None:
    store = open_store()
    tags: list[dict[Any, Any]] = [{"a": 1}, {"a": True}, {"a": 1.0}, {"a": "1"}, {"a": None}, {}]
    for number, tag in enumerate(tags):
        store.save_metric("custom", "x", float(number), tag)
    for _ in range(2):
        found = {sample["value"]: sample["tags"] for sample in store.get_metrics()}
        assert [found[float(number)] for number in range(len(tags))] == tags
        assert type(found[1.0]["a"]) is bool
        assert len(store.query_range("x")) == len(tags)
        store.flush_all()


def test_scrapes_are_queried_by_name_tags_and_time(open_store: OpenStore) -> None:
    store = open_store()
    for second in range(10):
        store.save_scrape(PAGE, page(second * 10, second, -second, 7), timestamp=100.0 + second, target=HOST)
        if second == 4:
            store.flush_all()  # half on disk, half in memory
    both = store.query_range("vllm:num_requests_running", target=HOST)
    assert [(series.tags, series.metric_type, series.name) for series in both] == [
        ({"engine": "0"}, "performance", "vllm:num_requests_running"),
        ({"engine": "1"}, "performance", "vllm:num_requests_running"),
    ]
    assert both[1].timestamps_ms.dtype == np.int64
    assert both[1].timestamps_ms.tolist() == [100_000 + 1000 * second for second in range(10)]
    assert both[1].values.tolist() == [-float(second) for second in range(10)]
    (one,) = store.query_range("vllm:num_requests_running", tags={"engine": "1"}, start_time=103, end_time=106.0)
    assert one.timestamps_ms.tolist() == [103_000, 104_000, 105_000, 106_000]
    assert store.query_range("vllm:num_requests_running", target="http://elsewhere") == []
    assert store.query_range("nothing") == []
    assert len(store.query_range(None)) == 4
    assert store.list_targets() == [HOST]
    assert store.list_series(HOST) == sorted(PAGE.series, key=str)
    assert {series.kind for series in store.list_series()} == {
        MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.UNKNOWN
    }  # fmt: skip
    assert {source: times.tolist() for source, times in store.scrape_times(HOST, 101, 103).items()} == {
        "metrics": [101_000, 102_000, 103_000]
    }


def test_get_metrics_filters_orders_and_limits(open_store: OpenStore) -> None:
    store = open_store()
    for second in range(50):
        store.save_scrape(PAGE, page(second, 1, 2, 3), timestamp=float(second), target=HOST)
        store.save_metric(MetricType.CUSTOM, "mine", second, timestamp=second + 0.5, target=HOST)
        if second % 20 == 19:
            store.flush_all()
    everything = store.get_metrics(limit=None)
    times = [sample["timestamp"] for sample in everything]
    assert len(times) == 250
    assert times == sorted(times, reverse=True)
    assert store.get_metrics(limit=7) == everything[:7]
    assert store.get_metrics(limit=0) == []
    assert {sample["metric_name"] for sample in store.get_metrics("resource")} == {"process_resident_memory_bytes"}
    assert [sample["value"] for sample in store.get_metrics("custom", limit=3)] == [49, 48, 47]
    named = store.get_metrics(metric_name="vllm:prompt_tokens_total", start_time=10, end_time=12)
    assert [sample["value"] for sample in named] == [12.0, 11.0, 10.0]
    assert store.get_metrics(MetricType.MONITOR) == []
    with pytest.raises(ConfigurationError):
        store.get_metrics(limit=-1)


def test_equal_times_are_all_kept_in_order_of_arrival(open_store: OpenStore) -> None:
    store = open_store()
    for number in range(5):
        store.save_metric("custom", "x", number, timestamp=50.0004)
        store.save_scrape(PAGE, page(number, 0, 0, 0), timestamp=50.0, target=HOST)
        if number == 2:
            store.flush_all()
    for _ in range(2):
        assert [sample["value"] for sample in store.get_metrics(metric_name="x")] == [4, 3, 2, 1, 0]
        (mine,) = store.query_range("x")
        (page_series,) = store.query_range("vllm:prompt_tokens_total")
        assert mine.values.tolist() == page_series.values.tolist() == [0, 1, 2, 3, 4]
        assert mine.timestamps_ms.tolist() == [50_000] * 5
        store.flush_all()


def test_the_clock_goes_backwards(open_store: OpenStore) -> None:
    clock = ManualClock(10_000.0)
    store = open_store(clock=clock)
    for step in range(6):
        store.save_scrape(PAGE, page(step, 0, 0, 0), timestamp=clock.now(), target=HOST)
        store.save_metric("custom", "x", step)
        store.flush_all()
        clock.step_wall(-7200 if step == 2 else 1)
    for name in ("x", "vllm:prompt_tokens_total"):
        (series,) = store.query_range(name)
        assert series.values.tolist() == [3, 4, 5, 0, 1, 2]
        assert np.all(np.diff(series.timestamps_ms) >= 0)
        newest = [sample["value"] for sample in store.get_metrics(metric_name=name, limit=4)]
        assert newest == [2, 1, 0, 5]


def test_layouts_that_change_back_and_forth(open_store: OpenStore) -> None:
    other = Layout([*PAGE.series[1:], Series("new_total")])
    store = open_store()
    wanted: dict[str, list[float]] = {"process_resident_memory_bytes": [], "new_total": []}
    for step in range(200):
        value = math.sin(step)
        if step % 3 == 0:
            store.save_scrape(other, page(0, 0, value, step), timestamp=step, target=HOST)
            wanted["new_total"].append(step)
        else:
            store.save_scrape(PAGE, page(0, 0, 0, value), timestamp=step, target=HOST)
        wanted["process_resident_memory_bytes"].append(value)
        if step % 50 == 49:
            store.flush_all()
    store.close()
    store = open_store()
    for name, values in wanted.items():
        (series,) = store.query_range(name, target=HOST)
        assert series.values.tolist() == values
    (part,) = store.query_range("process_resident_memory_bytes", start_time=130, end_time=132)
    assert part.values.tolist() == wanted["process_resident_memory_bytes"][130:133]


def test_faulty_pages_repeat_series_and_labels(open_store: OpenStore) -> None:
    twice = Layout(
        [Series("a"), Series("a"), Series("b", (("x", "1"), ("x", "2"))), Series('\ud800"', (("\0", "\n"),))]
    )
    store = open_store()
    store.save_scrape(twice, page(1, 2, 3, 4), timestamp=1.0, target="\udcff")
    store.close()
    store = open_store()
    (series,) = store.query_range("a", target="\udcff")
    assert series.values.tolist() == [1, 2]
    assert store.query_range("b")[0].series == twice.series[2]
    assert store.query_range('\ud800"')[0].tags == {"\0": "\n"}
    assert store.list_targets() == ["\udcff"]


def test_latest_comes_from_memory_and_after_a_restart_from_disk(open_store: OpenStore) -> None:
    store = open_store()
    for second in range(70):
        store.save_scrape(PAGE, page(second, 1, 2, 3), timestamp=second, target=HOST)
        store.save_scrape(Layout([Series("up")]), page(second), timestamp=second, target=HOST, source="health")
        store.save_metric("custom", "mine", second, {"n": "0"}, timestamp=second)
    expected = {"up": 69.0, "vllm:prompt_tokens_total": 69.0, "mine": 69}

    def newest(manager: PersistenceManager, **filters: Any) -> dict[str, Any]:
        return {sample["metric_name"]: sample["value"] for sample in manager.latest(**filters)}

    assert newest(store).items() >= expected.items()
    assert len(store.recent_scrapes(HOST)) == 70
    store.close()
    store = open_store()
    assert newest(store).items() >= expected.items()
    assert newest(store, metric_name="up") == {"up": 69.0}
    assert newest(store, target="http://elsewhere") == {}
    assert store.recent_scrapes(HOST) == []


def test_rings_are_bounded(open_store: OpenStore) -> None:
    store = open_store(synchronous=True)
    for second in range(400):
        store.save_scrape(PAGE, page(second, 1, 2, 3), timestamp=second, target=HOST)
    recent = store.recent_scrapes(HOST)
    assert [recent[0][0], recent[-1][0], len(recent)] == [100.0, 399.0, 300]


def test_statistics_and_health(open_store: OpenStore) -> None:
    store = open_store()
    assert store.get_statistics()["oldest"] is None
    store.save_scrape(PAGE, page(1, 2, 3, 4), timestamp=5.0, target=HOST)
    store.save_metric("custom", "x", 1, timestamp=3.0)
    store.flush_all()
    store.save_metric("custom", "x", 1, timestamp=9.0)
    statistics = store.get_statistics()
    assert statistics["counts"]["metrics"] == 6
    assert (statistics["oldest"], statistics["newest"]) == (3.0, 9.0)
    assert statistics["bytes"] > 0
    assert statistics["last_flush"] is not None
    assert not statistics["degraded"]
    assert store.health().ok


@pytest.mark.parametrize("timestamp", [1_800_000_000_000, -62_135_596_801, float("nan")])
def test_a_time_that_no_calendar_has_is_refused(open_store: OpenStore, timestamp: float) -> None:
    store = open_store()
    with pytest.raises(ValueNotStorableError, match="not a time"):
        store.save_metric("custom", "x", 1.0, timestamp=timestamp)


def test_canonical_names_are_an_alias_layer(open_store: OpenStore) -> None:
    store = open_store(clock=ManualClock(1_000.0))
    names = [
        ("vllm:gpu_cache_usage_perc", ()),
        ("http_requests_total", (("status", "2xx"),)),
        ("http_requests_total", (("status", "5xx"),)),
        ("vllm:time_to_first_token_seconds_bucket", (("le", "1.0"),)),
        ("vllm:time_to_first_token_seconds_bucket", (("le", "+Inf"),)),
        ("vllm:time_to_first_token_seconds_count", ()),
    ]
    layout = Layout([Series(name, labels) for name, labels in names])
    for second in range(3):
        store.save_scrape(layout, array("d", [0.5, 7.0, 2.0, 4.0, 8.0, 8.0]), timestamp=60.0 * second, target="t")
    store.save_metric("custom", "requests_running", 3.0, timestamp=1.0)
    assert [one.name for one in store.query_range("kv_cache_usage_ratio")] == ["vllm:gpu_cache_usage_perc"]
    assert store.get_metrics(metric_name="kv_cache_usage_ratio", limit=1)[0]["value"] == 0.5
    (newest,) = store.latest(metric_name="kv_cache_usage_ratio")
    assert newest["metric_name"] == "vllm:gpu_cache_usage_perc", "a sample keeps the name of its page"
    assert [one.tags for one in store.query_range("http_server_errors_total")] == [{"status": "5xx"}]
    assert len(store.query_range("http_requests_total")) == 2, "a name on the page means just that"
    assert len(store.query_range("time_to_first_token_seconds")) == 3
    assert [one.values.tolist() for one in store.query_range("requests_running")] == [[3.0]]
    store.run_maintenance(seal_all=True)
    assert [one.name for one in store.query_range("kv_cache_usage_ratio")] == ["vllm:gpu_cache_usage_perc"]
    by_name = {
        name: store.query_range(name, step_seconds=60, aggregation="quantile", quantile=0.5)
        for name in ("time_to_first_token_seconds", "vllm:time_to_first_token_seconds")
    }
    assert len({len(found) for found in by_name.values()}) == 1


def test_close_is_final_and_harmless(open_store: OpenStore) -> None:
    store = open_store()
    store.save_metric("custom", "x", 1)
    store.close()
    store.close()
    for _ in range(2):
        store.save_metric("custom", "x", 2)
    store.save_scrape(PAGE, page(1, 2, 3, 4), timestamp=5.0)
    assert store.health().dropped == {"closed": 3}
    with pytest.raises(StoreUnavailableError, match="closed"):
        store.save_event(Event(timestamp=1.0, event_type="late", message="m"))
    with pytest.raises(StoreUnavailableError, match="closed"):
        store.get_metrics()
    with open_store() as again:
        assert len(again.get_metrics()) == 1


def test_private_and_lazy_files(open_store: OpenStore, tmp_path: Path) -> None:
    config = PersistenceConfig(storage_dir=tmp_path / "deep" / "store")
    assert not config.storage_dir.exists()
    store = open_store(storage_dir=config.storage_dir)
    store.save_metric("custom", "x", 1)
    store.flush_all()
    store.acquire_lease(HOST)
    assert config.storage_dir.stat().st_mode & 0o777 == 0o700
    files = [path for path in config.storage_dir.rglob("*") if path.is_file()]
    assert len(files) >= 4
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


names = st.text(max_size=8)
hostile_tags = st.dictionaries(names, names, max_size=3)
hostile_metadata = st.dictionaries(
    names, st.one_of(st.none(), st.text(max_size=5), st.integers(), st.binary()), max_size=2
)
numbers = st.one_of(st.floats(), st.booleans(), st.integers(-(2**53), 2**53))


@given(
    st.lists(
        st.tuples(names, names, numbers, hostile_tags, hostile_metadata, st.integers(-(10**13), 10**13), names),
        max_size=12,
    )
)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip_of_hostile_samples(
    tmp_path_factory: pytest.TempPathFactory, samples: list[tuple[str, str, Any, dict[str, str], Any, int, str]]
) -> None:
    config = PersistenceConfig(storage_dir=tmp_path_factory.mktemp("store"))
    expected = []
    with PersistenceManager(config, synchronous=True) as store:
        for kind, name, value, tags, metadata, time_ms, target in samples:
            store.save_metric(kind, name, value, tags, metadata, timestamp=time_ms / 1000, target=target)
            expected.append((time_ms / 1000, kind, name, type(value), bits(value), tags, metadata, target))
        in_memory = store.get_metrics(limit=None)
    with PersistenceManager(config, synchronous=True) as store:
        on_disk = store.get_metrics(limit=None)
    for found in (in_memory, on_disk):
        seen = [(*tuple(s.values())[:3], type(s["value"]), bits(s["value"]), *tuple(s.values())[4:]) for s in found]
        assert sorted(seen, key=repr) == sorted(expected, key=repr)


def test_a_range_that_begins_inside_a_row_of_single_samples(open_store: OpenStore) -> None:
    store = open_store(synchronous=True)
    for second in range(0, 300, 10):
        store.save_metric("custom", "x", second, timestamp=1000.0 + second)
    store.flush_all()  # a few rows, each of a minute of samples
    assert store.get_statistics()["counts"]["metric_rows"] < 10
    (series,) = store.query_range("x", start_time=1040, end_time=1060)
    assert series.values.tolist() == [40, 50, 60]
    found = store.get_metrics(metric_name="x", start_time=1040, end_time=1060)
    assert [sample["value"] for sample in found] == [60, 50, 40]
    assert [sample["value"] for sample in store.get_metrics(limit=3)] == [290, 280, 270]
