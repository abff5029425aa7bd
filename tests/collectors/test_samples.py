from __future__ import annotations

import math
import re
from array import array

from vllm_monitor.collectors.samples import PROBE_METRICS, ProbeSampler
from vllm_monitor.records import (
    CanaryObservation,
    GpuInfo,
    GpuObservation,
    HealthObservation,
    HostPressure,
    Layout,
    LoadObservation,
    LogObservation,
    MetricKind,
    MetricType,
    Observation,
    PageObservation,
    PauseObservation,
    ProbeFailure,
    ProcessInfo,
    ProcessObservation,
    metric_type_of,
)

T = "http://127.0.0.1:8000"


def process(pid: int, role: str = "engine", state: str = "sleeping") -> ProcessInfo:
    return ProcessInfo(pid, role, state, 1.5, 100, 200, 3, 7, 11, 13)


EVERYTHING: list[Observation] = [
    PageObservation(target=T, timestamp=1, latency_seconds=0.5, status=200, malformed_lines=2),
    HealthObservation(target=T, timestamp=1, latency_seconds=0.25, status=503),
    CanaryObservation(target=T, timestamp=1, latency_seconds=0.75, ok=True, time_to_first_token_seconds=0.5),
    LoadObservation(target=T, timestamp=1, server_load=4.0),
    PauseObservation(target=T, timestamp=1, is_paused=True),
    LogObservation(target=T, timestamp=1, line="no sample"),
    ProcessObservation(
        target=T,
        timestamp=1,
        processes=(process(42, state="stopped"),),
        host=HostPressure(50.0, 1.5, 1000, 12.5, 0.0, 0.5),
        listen_queue=3,
        established=9,
        exit_code=-9,
    ),
    GpuObservation(target=T, timestamp=1, gpus=(GpuInfo(0, "NVIDIA H100", 10, 80, 0.5, 300.0, 61.0, 4, 7),)),
]


def table(sampled: tuple[Layout, array[float]] | None) -> dict[str, float]:
    assert sampled is not None
    layout, values = sampled
    return {str(series): value for series, value in zip(layout.series, values, strict=True)}


def test_every_name_is_made_and_explained() -> None:
    sampled = ProbeSampler().sample(EVERYTHING)
    assert sampled is not None
    names = {series.name for series in sampled[0].series}
    assert names == set(PROBE_METRICS)
    assert all(help_text.endswith(".") for help_text in PROBE_METRICS.values())
    for series in sampled[0].series:
        assert series.kind is (MetricKind.COUNTER if series.name.endswith("_total") else MetricKind.GAUGE)
        assert re.fullmatch(r"vllm_monitor_[a-z0-9_]+", series.name)


def test_values() -> None:
    found = table(ProbeSampler().sample(EVERYTHING))
    assert found["vllm_monitor_scrape_ok"] == 1.0
    assert found["vllm_monitor_health_ok"] == 0.0
    assert found["vllm_monitor_health_http_status"] == 503.0
    assert found["vllm_monitor_canary_ttft_seconds"] == 0.5
    assert found["vllm_monitor_is_paused"] == 1.0
    assert found["vllm_monitor_server_exit_code"] == -9.0
    assert found['vllm_monitor_process_state{pid="42",role="engine"}'] == 5.0
    assert found['vllm_monitor_process_resident_memory_bytes{pid="42",role="engine"}'] == 100.0
    assert found["vllm_monitor_host_pressure_cpu_some_avg10_percent"] == 12.5
    assert found['vllm_monitor_gpu_memory_used_bytes{gpu="0"}'] == 10.0


def test_types_in_the_store() -> None:
    assert metric_type_of("vllm_monitor_process_open_fds") is MetricType.RESOURCE
    assert metric_type_of("vllm_monitor_scrape_ok") is MetricType.MONITOR


def test_the_layout_stays_and_missing_values_are_nan() -> None:
    sampler = ProbeSampler()
    full = sampler.sample(EVERYTHING)
    less = sampler.sample([PageObservation(target=T, timestamp=2, failure=ProbeFailure("timeout", "slow"))])
    assert full is not None
    assert less is not None
    assert less[0] is full[0]
    found = table(less)
    assert found["vllm_monitor_scrape_ok"] == 0.0
    assert math.isnan(found["vllm_monitor_scrape_http_status"])
    assert math.isnan(found["vllm_monitor_health_ok"])
    assert all(math.isnan(value) for value in table(sampler.sample([])).values())


def test_two_targets_with_the_same_series_share_a_layout() -> None:
    one, two = ProbeSampler().sample(EVERYTHING), ProbeSampler().sample(EVERYTHING)
    assert one is not None
    assert two is not None
    assert one[0] is two[0]


def test_nothing_seen_is_nothing() -> None:
    sampler = ProbeSampler()
    assert sampler.sample([]) is None
    assert sampler.sample([LogObservation(target=T, timestamp=1, line="x")]) is None


def test_processes_long_gone_are_forgotten() -> None:
    sampler = ProbeSampler()
    for tick in range(900):
        seen = ProcessObservation(target=T, timestamp=float(tick), processes=(process(tick // 30),))
        sampled = sampler.sample([seen])
    found = table(sampled)
    pids = {name for name in found if name.startswith("vllm_monitor_process_threads")}
    assert f'vllm_monitor_process_threads{{pid="{tick // 30}",role="engine"}}' in pids
    assert len(pids) <= 300 // 30 + 2


def test_processes_without_a_role_leave_no_series() -> None:
    seen = ProcessObservation(target=T, timestamp=1, processes=(process(7, role="other:gcc"), process(8)))
    found = table(ProbeSampler().sample([seen]))
    assert 'vllm_monitor_process_threads{pid="8",role="engine"}' in found
    assert not any("gcc" in name for name in found)


def test_a_series_without_labels_is_never_forgotten() -> None:
    sampler = ProbeSampler()
    first = sampler.sample([HealthObservation(target=T, timestamp=0, status=200)])
    for _ in range(700):
        last = sampler.sample([])
    assert first is not None
    assert last is not None
    assert last[0] is first[0]
