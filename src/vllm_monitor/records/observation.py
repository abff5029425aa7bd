"""Observations: one result of one probe of one target, as collectors and recordings deliver it.

Every observation has ``timestamp``, when the probe began (unix seconds), and ``visible_at``, when its
result was there. The pipeline consumes them in the order of ``visible_at``; a replay that used ``timestamp``
would see the future.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_monitor.records.request import RequestSummary
from vllm_monitor.records.series import Layout

__all__ = [
    "CanaryObservation",
    "EngineNote",
    "EngineObservation",
    "GpuInfo",
    "GpuObservation",
    "HealthObservation",
    "HostPressure",
    "LoadObservation",
    "LogObservation",
    "Observation",
    "PageObservation",
    "PauseObservation",
    "ProbeFailure",
    "ProcessInfo",
    "ProcessObservation",
    "VersionObservation",
]


@dataclass(frozen=True, slots=True)
class ProbeFailure:
    """Why a probe has no result.

    Args:
        kind: ``timeout``, ``refused`` (nobody listens), ``reset`` (closed on us), ``dns``, ``tls``, ``http``
            (an unexpected status), ``not_metrics`` (a page of something else), ``too_large``, ``truncated``
            or ``other``.
        message: One sentence for a person.
    """

    kind: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timed:
    target: str
    timestamp: float
    latency_seconds: float = 0.0

    @property
    def visible_at(self) -> float:
        """Unix seconds at which the result was there."""
        return self.timestamp + self.latency_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class PageObservation(_Timed):
    """One scrape of ``/metrics``.

    Args:
        layout: The series of the page; ``None`` when the scrape failed.
        values: One float64 per column of ``layout``; ``None`` when the scrape failed.
        status: HTTP status, when there was one.
        failure: Why there are no values.
        malformed_lines: Lines of the page that could not be read and were skipped.
    """

    layout: Layout | None = None
    values: array[float] | None = None
    status: int | None = None
    failure: ProbeFailure | None = None
    malformed_lines: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthObservation(_Timed):
    """One request to ``/health``. ``status`` is ``None`` when there was no answer."""

    status: int | None = None
    failure: ProbeFailure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionObservation(_Timed):
    """What ``/version`` and ``/v1/models`` said.

    Args:
        version: Version of vLLM; ``None`` when there was no answer.
        models: Names of the served models.
        models_failure: Why there are no models (without an API key ``/v1`` answers 401).
    """

    version: str | None = None
    models: tuple[str, ...] = ()
    models_failure: ProbeFailure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadObservation(_Timed):
    """``/load``: HTTP requests in flight; always 0 unless the server tracks its load."""

    server_load: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseObservation(_Timed):
    """``/is_paused`` of the development routes; ``None`` where the route does not exist."""

    is_paused: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryObservation(_Timed):
    """One request for a single token, sent by us.

    Args:
        ok: The token arrived without an error.
        status: HTTP status, when there was one (errors inside a stream have status 200).
        failure: Why there is no token.
        time_to_first_token_seconds: ``None`` when no token arrived.
    """

    ok: bool = False
    status: int | None = None
    failure: ProbeFailure | None = None
    time_to_first_token_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogObservation(_Timed):
    """One line of the server's log, without its line end."""

    line: str = ""


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """One process of the server.

    Args:
        pid: Process id.
        role: ``api``, ``engine``, ``worker``, ``resource_tracker`` or ``other:NAME``.
        state: As psutil names it: ``running``, ``sleeping``, ``stopped``, ``disk-sleep``, ``zombie`` ...
        cpu_seconds: User and system time since the process started.
        rss_bytes: Resident memory; 0 while a killed process is torn down.
        vms_bytes: Virtual memory.
        threads: Number of threads.
        fds: Open file descriptors; ``None`` when we may not look.
        voluntary_switches: Context switches it asked for.
        involuntary_switches: Context switches forced on it; they grow when the CPU is contended.
    """

    pid: int
    role: str
    state: str
    cpu_seconds: float
    rss_bytes: int
    vms_bytes: int = 0
    threads: int = 0
    fds: int | None = None
    voluntary_switches: int | None = None
    involuntary_switches: int | None = None


@dataclass(frozen=True, slots=True)
class HostPressure:
    """How hard the host is pressed.

    Args:
        cpu_percent: CPU in use, 0 to 100 over all cores.
        load1: Load average over a minute.
        memory_available_bytes: Memory that can be had without swapping.
        cpu_some_avg10: Share of the last 10 s, in percent, in which some task waited for a CPU (PSI);
            ``None`` where the kernel does not tell.
        memory_some_avg10: Likewise for memory.
        io_some_avg10: Likewise for I/O.
    """

    cpu_percent: float | None = None
    load1: float | None = None
    memory_available_bytes: int | None = None
    cpu_some_avg10: float | None = None
    memory_some_avg10: float | None = None
    io_some_avg10: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessObservation(_Timed):
    """The process tree of a local server, and its host.

    Args:
        processes: Living processes of the server; empty when none is left.
        host: Pressure on the host.
        listen_queue: Connections waiting to be accepted on the server's port; ``None`` when nobody listens.
        established: Established TCP connections to the port.
        exit_code: Exit code of the server where it is known (our own child); ``None`` otherwise.
    """

    processes: tuple[ProcessInfo, ...] = ()
    host: HostPressure = field(default_factory=HostPressure)
    listen_queue: int | None = None
    established: int | None = None
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class GpuInfo:
    """One GPU. Fields that the driver does not report are ``None``."""

    index: int
    name: str
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilisation_ratio: float | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None
    throttle_reasons: int | None = None
    ecc_uncorrected_total: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuObservation(_Timed):
    """All GPUs of the host."""

    gpus: tuple[GpuInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineNote:
    """A rare fact that the part inside the server told.

    Args:
        timestamp: Unix seconds.
        kind: ``started``, ``engine_initialized``, ``application_ready``, ``stalled``, ``stall_over``, ``sleep``,
            ``lever`` or ``end``; the monitor makes ``rejected`` and ``rejected_over`` of the counts.
        facts: What it said of it.
        note_id: The same whenever it is read again, another one for every other fact; empty when it has none.
    """

    timestamp: float
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    note_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineObservation(_Timed):
    """What the part of ours inside a server told with one line of totals, and since the line before.

    Args:
        api_server: Which of the server's API processes, ``"0"`` where there is one.
        layout: Columns of the samples.
        values: The samples, counted since that process began.
        in_flight: Requests given to an engine and not got back whole.
        oldest_request_seconds: Age of the oldest of them; ``None`` when it is not known.
        step_age_seconds: Time since the last step; ``None`` before the first.
        stalled_seconds: How long no step has come although requests are in flight; 0 while all is well.
        lost: Steps and lines that were lost inside, or on the way here, since that process began.
        faults: Faults of our own part inside, since that process began.
        rejected: Requests refused before an engine saw them, by reason, since that process began.
        is_paused: Whether a lever of ours has paused the engines; ``None`` until one was moved.
        requests: Requests that have finished.
        notes: Rare facts.
        spool: Names the process that wrote it, among all there ever were; empty when it is not known.
        line: The number of that line among those of the process; with the line all before it were told.
    """

    api_server: str = "0"
    layout: Layout | None = None
    values: array[float] | None = None
    in_flight: float = 0.0
    oldest_request_seconds: float | None = None
    step_age_seconds: float | None = None
    stalled_seconds: float = 0.0
    lost: int = 0
    faults: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    is_paused: bool | None = None
    requests: tuple[RequestSummary, ...] = ()
    notes: tuple[EngineNote, ...] = ()
    spool: str = ""
    line: int = 0


Observation = (
    PageObservation
    | HealthObservation
    | VersionObservation
    | LoadObservation
    | PauseObservation
    | CanaryObservation
    | LogObservation
    | ProcessObservation
    | GpuObservation
    | EngineObservation
)
