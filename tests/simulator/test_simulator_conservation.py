"""What must hold on every page, whatever happens to the server."""

from __future__ import annotations

from collections import defaultdict

import pytest

from vllm_monitor.records import MetricKind
from vllm_monitor.simulator import EngineSettings, LoadSettings, ServerSettings, Simulator, parse_fault
from vllm_monitor.simulator.histogram import Histogram

_SMALL = ServerSettings(
    engine=EngineSettings(max_num_seqs=12, num_blocks=160, max_model_len=1024),
    load=LoadSettings(requests_per_second=3.0, client_timeout_seconds=20.0),
)
_STORMS: list[tuple[str, ...]] = [
    (),
    ("freeze@15+30",),
    ("kv_pressure@10+40",),
    ("overload@10+10",),
    ("pause@20+10", "leak@5+30"),
    ("kv_pressure@5+60", "freeze@30+10", "pause@35+10"),
]


def _values(simulator: Simulator) -> dict[str, float]:
    layout, values = simulator.scrape()
    return {str(series): value for series, value in zip(layout.series, values, strict=True)}


def _check_histograms(simulator: Simulator) -> None:
    buckets: dict[tuple[str, object], list[float]] = defaultdict(list)
    counts: dict[tuple[str, object], float] = {}
    layout, values = simulator.scrape()
    for series, value in zip(layout.series, values, strict=True):
        if series.kind is not MetricKind.HISTOGRAM:
            continue
        others = tuple(label for label in series.labels if label[0] != "le")
        if series.name.endswith("_bucket"):
            buckets[series.name.removesuffix("_bucket"), others].append(value)
        elif series.name.endswith("_count"):
            counts[series.name.removesuffix("_count"), others] = value
    assert buckets.keys() == counts.keys()
    for key, row in buckets.items():
        assert row == sorted(row), key
        assert row[-1] == counts[key], key


@pytest.mark.parametrize("faults", _STORMS, ids=lambda faults: " ".join(faults) or "healthy")
@pytest.mark.parametrize("seed", [0, 1])
def test_counters_only_grow_and_gauges_stay_in_range(faults: tuple[str, ...], seed: int) -> None:
    simulator = Simulator(_SMALL, seed=seed, faults=[parse_fault(fault) for fault in faults])
    growing = [
        index
        for index, series in enumerate(simulator.layout.series)
        if series.kind in (MetricKind.COUNTER, MetricKind.HISTOGRAM, MetricKind.SUMMARY)
    ]
    before = simulator.scrape()[1]
    for _ in range(90):
        simulator.advance(1.0)
        now = simulator.scrape()[1]
        for index in growing:
            assert now[index] >= before[index], simulator.layout.series[index]
        before = now
        statistics = simulator.life.statistics if simulator.life else None
        assert statistics is not None
        assert 0.0 <= statistics.kv_usage_ratio <= 1.0
        assert 0 <= statistics.running <= 12
        assert statistics.waiting >= 0
    _check_histograms(simulator)


@pytest.mark.parametrize("faults", _STORMS, ids=lambda faults: " ".join(faults) or "healthy")
def test_nothing_is_left_when_the_load_has_drained(faults: tuple[str, ...]) -> None:
    simulator = Simulator(_SMALL, seed=2, faults=[parse_fault(fault) for fault in faults])
    simulator.advance(90.0)
    simulator.inject(parse_fault("overload@90,rate_multiplier=0"))
    simulator.advance(120.0)
    values = _values(simulator)
    labels = '{engine="0",model_name="simulated"}'
    assert simulator.visible_in_flight == 0
    for gauge in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert values[f"vllm:{gauge}{labels}"] == 0.0
    finished = sum(value for name, value in values.items() if name.startswith("vllm:request_success_total"))
    clients = simulator.clients
    assert clients.sent == finished + clients.timed_out
    assert clients.failed == clients.refused == 0


@pytest.mark.parametrize("faults", _STORMS, ids=lambda faults: " ".join(faults) or "healthy")
def test_tokens_and_steps_add_up(faults: tuple[str, ...]) -> None:
    settings = ServerSettings(
        engine=_SMALL.engine, load=LoadSettings(requests_per_second=0.0, client_timeout_seconds=20.0)
    )
    simulator = Simulator(settings, seed=2, faults=[parse_fault(fault) for fault in faults])
    requests = []
    for number in range(60):
        requests.append(simulator.submit(20 + 7 * number, 30 + 5 * number))
        if number % 7 == 3:
            simulator.abandon(requests[number - 3])
        simulator.advance(0.4)
    simulator.advance(200.0)
    values = _values(simulator)
    labels = '{engine="0",model_name="simulated"}'
    handed_out = sum(request.generated for request in requests)
    assert handed_out > 1000
    assert values[f"vllm:generation_tokens_total{labels}"] == handed_out
    served = [request for request in requests if request.generated]
    assert values[f"vllm:prompt_tokens_total{labels}"] == sum(request.prompt_tokens for request in served)
    assert values[f"vllm:time_to_first_token_seconds_count{labels}"] == len(served)
    assert values[f"vllm:inter_token_latency_seconds_count{labels}"] == handed_out - len(served)
    assert simulator.life is not None
    assert values[f"vllm:iteration_tokens_total_count{labels}"] == simulator.life.statistics.steps
    assert simulator.life.statistics.steps > 0
    finished = [request for request in requests if request.finish_reason]
    assert values[f"vllm:e2e_request_latency_seconds_count{labels}"] == len(finished)
    assert len(finished) + sum(request.abandoned for request in requests) == len(requests)
    assert all(request.generated == request.output_tokens for request in finished)


def test_abandoned_requests_are_counted_nowhere() -> None:
    settings = ServerSettings(load=LoadSettings(requests_per_second=0.0))
    simulator = Simulator(settings)
    requests = [simulator.submit(10, 500) for _ in range(5)]
    simulator.advance(1.0)
    for request in requests:
        simulator.abandon(request)
    simulator.advance(1.0)
    values = _values(simulator)
    assert sum(v for name, v in values.items() if name.startswith("vllm:request_success_total")) == 0
    labels = '{engine="0",model_name="simulated"}'
    assert values[f"vllm:num_requests_running{labels}"] == 0
    assert values[f"vllm:time_to_first_token_seconds_count{labels}"] == 5


def test_shared_prompt_beginnings_hit_the_prefix_cache() -> None:
    simulator = Simulator(ServerSettings(load=LoadSettings(prefix_groups=2, prefix_tokens=64)))
    simulator.advance(120.0)
    assert simulator.life is not None
    statistics = simulator.life.statistics
    assert 0.1 < statistics.prefix_hits / statistics.prefix_queries < 0.6
    assert statistics.cached_prompt_tokens <= statistics.prefix_hits
    without = Simulator(ServerSettings(load=LoadSettings(prefix_groups=0)))
    without.advance(120.0)
    assert without.life is not None
    assert without.life.statistics.prefix_hits == 0


def test_a_value_on_a_bucket_boundary_counts_below_it() -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.observe(1.0)
    histogram.observe(1.5, 3)
    histogram.observe(9.0)
    assert histogram.samples() == [1.0, 4.0, 5.0, 5.0, 14.5]
