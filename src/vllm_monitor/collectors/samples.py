"""What our own probes measured, as samples beside those of the server's page."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vllm_monitor.collectors.exposition import intern_layout
from vllm_monitor.records import (
    CanaryObservation,
    GpuObservation,
    HealthObservation,
    Layout,
    LoadObservation,
    MetricKind,
    Observation,
    PageObservation,
    PauseObservation,
    ProcessObservation,
    Series,
)

__all__ = ["PROBE_METRICS", "PROCESS_STATE_CODES", "ProbeSampler"]

PROCESS_STATE_CODES = {
    "running": 1.0,
    "sleeping": 2.0,
    "idle": 3.0,
    "disk-sleep": 4.0,
    "stopped": 5.0,
    "tracing-stop": 6.0,
    "zombie": 7.0,
    "dead": 8.0,
}
"""How ``vllm_monitor_process_state`` tells the state of a process; 0 is any other state."""

PROBE_METRICS = {
    "vllm_monitor_scrape_ok": "1 when the metrics page was read, 0 when not.",
    "vllm_monitor_scrape_duration_seconds": "Time until the page, or the failure, was there.",
    "vllm_monitor_scrape_http_status": "HTTP status of the metrics page.",
    "vllm_monitor_scrape_malformed_lines": "Lines of the page that could not be read.",
    "vllm_monitor_health_ok": "1 when /health answered 200, 0 when not.",
    "vllm_monitor_health_duration_seconds": "Time until /health answered or failed.",
    "vllm_monitor_health_http_status": "HTTP status of /health.",
    "vllm_monitor_canary_ok": "1 when our request for one token succeeded, 0 when not.",
    "vllm_monitor_canary_duration_seconds": "Time until the canary ended.",
    "vllm_monitor_canary_ttft_seconds": "Time until the canary's token was there.",
    "vllm_monitor_server_load": "Requests in flight as /load tells; always 0 unless the server tracks its load.",
    "vllm_monitor_is_paused": "1 when /is_paused says so, 0 when not.",
    "vllm_monitor_server_listen_queue": "Connections that wait to be accepted on the server's port.",
    "vllm_monitor_server_established_connections": "Connections to the server's port, ours left out.",
    "vllm_monitor_server_exit_code": "Exit code of the server, once it has ended; negative for a signal.",
    "vllm_monitor_process_cpu_seconds_total": "User and system time of a process, by role and pid.",
    "vllm_monitor_process_resident_memory_bytes": "Resident memory of a process.",
    "vllm_monitor_process_virtual_memory_bytes": "Virtual memory of a process.",
    "vllm_monitor_process_open_fds": "Open file descriptors of a process.",
    "vllm_monitor_process_threads": "Threads of a process.",
    "vllm_monitor_process_voluntary_context_switches_total": "Context switches that a process asked for.",
    "vllm_monitor_process_involuntary_context_switches_total": "Context switches forced on a process.",
    "vllm_monitor_process_state": "State of a process: "
    + ", ".join(f"{code:g} {name}" for name, code in PROCESS_STATE_CODES.items())
    + ", 0 any other.",
    "vllm_monitor_host_cpu_percent": "CPU in use on the host, 0 to 100 over all cores.",
    "vllm_monitor_host_load1": "Load average of the host over a minute.",
    "vllm_monitor_host_memory_available_bytes": "Memory of the host that can be had without swapping.",
    "vllm_monitor_host_pressure_cpu_some_avg10_percent": "Share of 10 s in which a task waited for a CPU (PSI).",
    "vllm_monitor_host_pressure_memory_some_avg10_percent": "Share of 10 s in which a task waited for memory.",
    "vllm_monitor_host_pressure_io_some_avg10_percent": "Share of 10 s in which a task waited for I/O.",
    "vllm_monitor_gpu_memory_used_bytes": "Memory in use on a GPU, by its index.",
    "vllm_monitor_gpu_memory_total_bytes": "Memory of a GPU.",
    "vllm_monitor_gpu_utilisation_ratio": "Share of time in which a GPU was busy, 0 to 1.",
    "vllm_monitor_gpu_power_watts": "Power that a GPU draws.",
    "vllm_monitor_gpu_temperature_celsius": "Temperature of a GPU.",
    "vllm_monitor_gpu_throttle_reasons": "Why a GPU is slowed down, as the driver's bit mask.",
    "vllm_monitor_gpu_ecc_uncorrected_total": "Memory errors of a GPU that could not be corrected, since its reset.",
}
"""Every name that :class:`ProbeSampler` makes, and what it means."""

_FORGET_PROCESS_AFTER_TICKS = 300

_Labels = tuple[tuple[str, str], ...]
_Reading = tuple[str, _Labels, float | int | bool | None]


class ProbeSampler:
    """Turns one tick's observations of one target into a row of samples. For one thread at a time.

    The layout object stays the same as long as no new series appears: a series without a value in some tick
    is NaN there. Only processes with a role have series, and those of processes that have been gone for long
    are dropped, so pids do not pile up.
    """

    def __init__(self) -> None:
        self._layout = Layout(())
        self._columns: dict[tuple[str, _Labels], int] = {}
        self._last_tick: list[int] = []  # by column
        self._tick = 0

    def sample(self, observations: Iterable[Observation]) -> tuple[Layout, array[float]] | None:
        """One row of samples; ``None`` before the first observation that has any.

        Args:
            observations: Of one target and tick; of two readings of a series the later one counts.
        """
        self._tick += 1
        readings = {
            (name, labels): float(value)
            for observation in observations
            for name, labels, value in _readings(observation)
            if value is not None
        }
        if self._has_old_processes() or not readings.keys() <= self._columns.keys():
            self._extend(readings)
        if not self._columns:
            return None
        values = array("d", [math.nan]) * len(self._columns)
        for key, value in readings.items():
            column = self._columns[key]
            values[column] = value
            self._last_tick[column] = self._tick
        return self._layout, values

    def _has_old_processes(self) -> bool:
        oldest = self._tick - _FORGET_PROCESS_AFTER_TICKS
        if oldest <= 0 or min(self._last_tick, default=self._tick) >= oldest:
            return False
        return any(labels and self._last_tick[column] < oldest for (_, labels), column in self._columns.items())

    def _extend(self, readings: Iterable[tuple[str, _Labels]]) -> None:
        oldest = self._tick - _FORGET_PROCESS_AFTER_TICKS
        kept = {
            key: self._last_tick[column]
            for key, column in self._columns.items()
            if not key[1] or self._last_tick[column] >= oldest
        }
        for key in readings:
            kept.setdefault(key, self._tick)
        self._columns = {key: column for column, key in enumerate(kept)}
        self._last_tick = list(kept.values())
        self._layout = intern_layout([Series(name, labels, _kind(name)) for name, labels in kept])


def _kind(name: str) -> MetricKind:
    return MetricKind.COUNTER if name.endswith("_total") else MetricKind.GAUGE


def _readings(observation: Observation) -> Iterator[_Reading]:
    reader = _READERS.get(type(observation))
    if reader is not None:
        yield from reader(observation)


def _of_page(one: PageObservation) -> Iterator[_Reading]:
    yield "vllm_monitor_scrape_ok", (), one.failure is None
    yield "vllm_monitor_scrape_duration_seconds", (), one.latency_seconds
    yield "vllm_monitor_scrape_http_status", (), one.status
    yield "vllm_monitor_scrape_malformed_lines", (), one.malformed_lines


def _of_health(one: HealthObservation) -> Iterator[_Reading]:
    yield "vllm_monitor_health_ok", (), one.status == 200
    yield "vllm_monitor_health_duration_seconds", (), one.latency_seconds
    yield "vllm_monitor_health_http_status", (), one.status


def _of_canary(one: CanaryObservation) -> Iterator[_Reading]:
    yield "vllm_monitor_canary_ok", (), one.ok
    yield "vllm_monitor_canary_duration_seconds", (), one.latency_seconds
    yield "vllm_monitor_canary_ttft_seconds", (), one.time_to_first_token_seconds


def _of_load(one: LoadObservation) -> Iterator[_Reading]:
    yield "vllm_monitor_server_load", (), one.server_load


def _of_pause(one: PauseObservation) -> Iterator[_Reading]:
    yield "vllm_monitor_is_paused", (), one.is_paused


def _of_processes(one: ProcessObservation) -> Iterator[_Reading]:
    yield "vllm_monitor_server_listen_queue", (), one.listen_queue
    yield "vllm_monitor_server_established_connections", (), one.established
    yield "vllm_monitor_server_exit_code", (), one.exit_code
    host = one.host
    yield "vllm_monitor_host_cpu_percent", (), host.cpu_percent
    yield "vllm_monitor_host_load1", (), host.load1
    yield "vllm_monitor_host_memory_available_bytes", (), host.memory_available_bytes
    yield "vllm_monitor_host_pressure_cpu_some_avg10_percent", (), host.cpu_some_avg10
    yield "vllm_monitor_host_pressure_memory_some_avg10_percent", (), host.memory_some_avg10
    yield "vllm_monitor_host_pressure_io_some_avg10_percent", (), host.io_some_avg10
    for info in one.processes:
        if info.role.startswith("other:"):
            continue  # compilers and the like come and go by the hundred; each would leave series behind
        labels = (("pid", str(info.pid)), ("role", info.role))
        yield "vllm_monitor_process_cpu_seconds_total", labels, info.cpu_seconds
        yield "vllm_monitor_process_resident_memory_bytes", labels, info.rss_bytes
        yield "vllm_monitor_process_virtual_memory_bytes", labels, info.vms_bytes
        yield "vllm_monitor_process_open_fds", labels, info.fds
        yield "vllm_monitor_process_threads", labels, info.threads
        yield "vllm_monitor_process_voluntary_context_switches_total", labels, info.voluntary_switches
        yield "vllm_monitor_process_involuntary_context_switches_total", labels, info.involuntary_switches
        yield "vllm_monitor_process_state", labels, PROCESS_STATE_CODES.get(info.state, 0.0)


def _of_gpus(one: GpuObservation) -> Iterator[_Reading]:
    for info in one.gpus:
        labels = (("gpu", str(info.index)),)
        yield "vllm_monitor_gpu_memory_used_bytes", labels, info.memory_used_bytes
        yield "vllm_monitor_gpu_memory_total_bytes", labels, info.memory_total_bytes
        yield "vllm_monitor_gpu_utilisation_ratio", labels, info.utilisation_ratio
        yield "vllm_monitor_gpu_power_watts", labels, info.power_watts
        yield "vllm_monitor_gpu_temperature_celsius", labels, info.temperature_celsius
        yield "vllm_monitor_gpu_throttle_reasons", labels, info.throttle_reasons
        yield "vllm_monitor_gpu_ecc_uncorrected_total", labels, info.ecc_uncorrected_total


_READERS: dict[type, Callable[[Any], Iterator[_Reading]]] = {
    PageObservation: _of_page,
    HealthObservation: _of_health,
    CanaryObservation: _of_canary,
    LoadObservation: _of_load,
    PauseObservation: _of_pause,
    ProcessObservation: _of_processes,
    GpuObservation: _of_gpus,
}
