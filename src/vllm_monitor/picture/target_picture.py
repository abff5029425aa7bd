"""The picture of one target: takes in observations, gives a judgement and a snapshot."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from vllm_monitor.picture.columns import COUNTER_NAMES, ColumnMap, PageNumbers, column_map
from vllm_monitor.picture.evidence import ApiEvidence, LogEvidence, ProcessEvidence
from vllm_monitor.picture.heartbeat import Heartbeat
from vllm_monitor.picture.judge import Judge, Judgement, View, is_pressed
from vllm_monitor.picture.life_evidence import LifeEvidence, ServerIdentity
from vllm_monitor.picture.log_signatures import LogSignature
from vllm_monitor.picture.snapshot import Snapshot
from vllm_monitor.picture.startup import StartupMarks, StartupPhase, phase_of_line
from vllm_monitor.picture.trends import Trends
from vllm_monitor.picture.windows import CounterWindow, histogram_quantile
from vllm_monitor.records import (
    CanaryObservation,
    Condition,
    EngineObservation,
    Event,
    GpuInfo,
    GpuObservation,
    HealthObservation,
    LifecycleState,
    LoadObservation,
    LogObservation,
    Observation,
    PageObservation,
    PauseObservation,
    ProcessObservation,
    Severity,
    VersionObservation,
)

__all__ = ["TargetPicture"]

RATE_SECONDS = 10.0
QUANTILE_SECONDS = 60.0
MOST_NOTES = 20
"""A page that invents names all the time must not fill memory and store with complaints."""
OLD_PAGE_SECONDS = 10.0
OLD_PAGES = 3.0
INSIDE_OLD_SECONDS = 5.0
INSIDE_FORGOTTEN_SECONDS = 600.0
"""Figures are shown until their page is older than ten seconds and than three times the last step between pages."""

_RATES = {
    "generation_tokens_total": "generation_tokens_per_second",
    "prompt_tokens_total": "prompt_tokens_per_second",
    "engine_steps_total": "engine_steps_per_second",
    "requests_finished_total": "requests_finished_per_second",
    "requests_failed_total": "requests_failed_per_second",
    "preemptions_total": "preemptions_per_second",
    "admission_rejections_total": "admission_rejections_per_second",
    "http_requests_total": "http_requests_per_second",
    "http_server_errors_total": "http_server_errors_per_second",
    "http_client_errors_total": "http_client_errors_per_second",
    "api_cpu_seconds_total": "api_cpu_ratio",
}
_HARMLESS = (LogSignature.STARTING, LogSignature.READY, LogSignature.SHUTDOWN, LogSignature.WORKER_SILENT)
_COUNTER_SLOT = {name: slot for slot, name in enumerate(COUNTER_NAMES)}


class TargetPicture:
    """What we know of one server.

    Feed it with :meth:`observe` in the order of ``visible_at``, ask :meth:`judge` once per tick and then
    :meth:`snapshot`. Deterministic: the same observations and times give the same answers. Not thread-safe.

    Args:
        target: The server's URL, or the name of a recording.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self._api = ApiEvidence()
        self._processes = ProcessEvidence()
        self._log = LogEvidence()
        self._startup = StartupMarks()
        self._heartbeat = Heartbeat()
        self._judge = Judge()
        self._counters = CounterWindow(QUANTILE_SECONDS)
        self._buckets = CounterWindow(QUANTILE_SECONDS)
        self._trends = Trends()
        self._trends_at: float | None = None
        self._map: ColumnMap | None = None
        self._numbers: PageNumbers | None = None
        self._good_page: PageObservation | None = None
        self._page_gap_seconds = 0.0
        self._start_time: float | None = None
        self._pages = 0
        self._new_page = False
        self._preempted_lately = 0.0
        self._canary_tokens: deque[float] = deque()
        self._gpus: tuple[GpuInfo, ...] = ()
        self._version: str | None = None
        self._models: tuple[str, ...] = ()
        self._server_load: float | None = None
        self._inside: dict[str, EngineObservation] = {}
        self._judgement = Judgement(Condition.UNKNOWN, "nothing seen yet")
        self._condition_since: float | None = None
        self._notes: dict[str, None] = {}
        self._events: list[Event] = []

    def observe(self, observation: Observation) -> None:
        """Take in one observation, in the order of ``visible_at``."""
        match observation:
            case PageObservation():
                self._see_page(observation)
            case HealthObservation():
                self._api.see_health(observation)
                if observation.status == 200:
                    self._api.last_503_at = None
                    self._mark_ready(observation.visible_at)
            case ProcessObservation():
                self._see_processes(observation)
            case CanaryObservation():
                self._see_canary(observation)
            case LogObservation():
                self._see_log(observation)
            case PauseObservation():
                self._api.see_pause(observation)
            case LoadObservation():
                self._server_load = observation.server_load
            case GpuObservation():
                self._gpus = observation.gpus
            case VersionObservation():
                self._see_version(observation)
            case EngineObservation():
                self._inside[observation.api_server] = observation
                if any(note.kind == "end" for note in observation.notes):
                    del self._inside[observation.api_server]

    def judge(self, now: float) -> Judgement:
        """The condition as of ``now``; once per tick, after the observations of the tick."""
        judgement = self._judge.decide(self._view(now))
        stopped = any(self._processes.stopped(role) for role in ("engine", "worker"))
        if stopped or judgement.condition in (Condition.PAUSED, Condition.API_FROZEN):
            self._heartbeat.excuse()
        if judgement.condition in (Condition.STALLED, Condition.STARVED):
            self._heartbeat.forget_gap()
        if judgement.condition in (Condition.STALLED, Condition.API_FROZEN, Condition.PAUSED):
            self._api.forget_latencies(now)
        if judgement.condition is not self._judgement.condition or self._condition_since is None:
            self._condition_since = now
        self._judgement = judgement
        self._new_page = False
        return judgement

    def life(self) -> LifeEvidence:
        """Where the server stands in its life, as of the newest judgement."""
        newest = self._processes.newest
        tokens = None
        if self._numbers is not None:
            total = float(self._numbers.counters[_COUNTER_SLOT["generation_tokens_total"]])
            tokens = None if math.isnan(total) else total
        return LifeEvidence(
            condition=self._judgement.condition,
            reason=self._judgement.reason,
            startup=self._startup.began_at,
            roles=None if newest is None else self._processes.living_roles(),
            port_closed=self._api.refused,
            exit_code=None if newest is None else newest.exit_code,
            first_fatal=self._log.first_fatal,
            start_failed=LogSignature.STARTUP_FAILED in self._log.seen_at,
            identity=ServerIdentity(
                start_time=self._start_time,
                generation_tokens_total=tokens,
                version=self._version,
                models=self._models,
            ),
        )

    @property
    def is_suspicious(self) -> bool:
        """Whether it is worth asking more often if the server is paused."""
        pulse = self._heartbeat.pulse()
        doubtful = self._judgement.condition in (Condition.STALLED, Condition.PAUSED)
        return doubtful or pulse.stuck_seconds > 1.5 or pulse.piling_seconds > 0

    @property
    def is_host_pressed(self) -> bool:
        """Whether tasks on the server's host wait for CPU or memory; not whether the server suffers from it."""
        newest = self._processes.newest
        return newest is not None and is_pressed(newest.host)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the served models, once known."""
        return self._models

    def take_events(self) -> list[Event]:
        """Events noticed since the last call (restarts, log lines, unknown families), oldest first."""
        events, self._events = self._events, []
        return events

    def snapshot(self, now: float, state: LifecycleState, values: dict[str, float] | None = None) -> Snapshot:
        """The picture as of ``now``.

        Args:
            now: Unix seconds of the tick.
            state: The lifecycle state that follows from the judgement.
            values: What :meth:`values` gave, when the caller has it already.
        """
        newest = self._processes.newest
        failure = self._api.page_failure
        return Snapshot(
            target=self.target,
            timestamp=now,
            state=state,
            condition=self._judgement.condition,
            reason=self._judgement.reason,
            condition_since=self._condition_since if self._condition_since is not None else now,
            values=self.values(now) if values is None else values,
            processes=newest.processes if newest is not None else (),
            host=newest.host if newest is not None else None,
            gpus=self._gpus,
            version=self._version,
            models=self._models,
            scraped_at=self._good_page.timestamp if self._good_page is not None else None,
            health_status=self._api.health.status if self._api.health is not None else None,
            failure=failure.message if failure is not None else "",
            notes=self._current_notes(),
        )

    def values(self, now: float) -> dict[str, float]:
        """Canonical names and their values; what is not known now is absent.

        Args:
            now: Unix seconds. What was on a page that is old by now is not known any more.
        """
        values: dict[str, float] = {}
        page = self._good_page
        fresh = page is not None and now - page.timestamp <= max(OLD_PAGE_SECONDS, OLD_PAGES * self._page_gap_seconds)
        if page is not None:
            pulse = self._heartbeat.pulse()
            values["progress_age_seconds"] = max(0.0, pulse.progress_age_seconds + now - page.visible_at)
        if page is not None and fresh and self._numbers is not None and self._map is not None:
            values["scrape_duration_seconds"] = page.latency_seconds
            values.update(self._numbers.gauges)
            for name, slot in _COUNTER_SLOT.items():
                total = float(self._numbers.counters[slot])
                if not math.isnan(total):
                    values[name] = total
            self._add_rates(values)
            self._add_quantiles(values, self._map)
            if page.timestamp != self._trends_at:
                self._trends_at = page.timestamp
                self._trends.add(page.timestamp, values)
            values.update(self._trends.values())
        if self._api.health is not None and self._api.health.failure is None:
            values["health_latency_seconds"] = self._api.health.latency_seconds
        if self._api.canary is not None:
            values["canary_ok"] = float(self._api.canary.ok)
            values["canary_latency_seconds"] = self._api.canary.latency_seconds
        if self._server_load is not None:
            values["server_load"] = self._server_load
        if self._inside and fresh:
            silent = max(now - one.timestamp for one in self._inside.values())
            if silent <= INSIDE_FORGOTTEN_SECONDS:
                values["inside_silent_seconds"] = max(0.0, silent)
        inside = self._told_inside(now)
        if inside:
            values["inside_lost_total"] = sum(one.lost for one in inside)
            values["inside_faults_total"] = sum(one.faults for one in inside)
            values["inside_requests_in_flight"] = sum(one.in_flight for one in inside)
            values["inside_stalled_seconds"] = max(one.stalled_seconds for one in inside)
            oldest = [one.oldest_request_seconds for one in inside if one.oldest_request_seconds is not None]
            if oldest:
                values["inside_oldest_request_seconds"] = max(oldest)
        self._add_host(values)
        return values

    def _add_rates(self, values: dict[str, float]) -> None:
        grown = self._counters.increase(RATE_SECONDS)
        if grown is not None:
            seconds, increase = grown
            for name, rate_name in _RATES.items():
                rate = float(increase[_COUNTER_SLOT[name]]) / seconds
                if not math.isnan(rate):
                    values[rate_name] = rate
        grown = self._counters.increase(QUANTILE_SECONDS)
        if grown is not None:
            queries = float(grown[1][_COUNTER_SLOT["prefix_cache_queries_total"]])
            if queries > 0:
                hits = float(grown[1][_COUNTER_SLOT["prefix_cache_hits_total"]])
                values["prefix_cache_hit_ratio"] = hits / queries

    def _add_quantiles(self, values: dict[str, float], columns: ColumnMap) -> None:
        grown = self._buckets.increase(QUANTILE_SECONDS)
        if grown is None:
            return
        for name, (bounds, part) in columns.histograms.items():
            cumulative, total_sum = grown[1][part], float(grown[1][columns.sums[name]])
            for label, quantile in (("p50", 0.5), ("p95", 0.95)):
                value = histogram_quantile(quantile, bounds, cumulative, total_sum)
                if value is not None:
                    values[name.removesuffix("seconds") + label + "_seconds"] = value
            if name == "inter_token_latency_seconds" and bounds.size > 1 and cumulative[-1] > 0:
                longest = int(np.searchsorted(cumulative, cumulative[-1]))
                values["inter_token_latency_longest_seconds"] = float(bounds[min(longest, bounds.size - 2)])

    def _add_host(self, values: dict[str, float]) -> None:
        newest = self._processes.newest
        if newest is None:
            return
        for name, number in (
            ("established_connections", newest.established),
            ("listen_queue", newest.listen_queue),
            ("host_cpu_percent", newest.host.cpu_percent),
            ("host_cpu_pressure_percent", newest.host.cpu_some_avg10),
            ("host_memory_pressure_percent", newest.host.memory_some_avg10),
            ("host_memory_available_bytes", newest.host.memory_available_bytes),
        ):
            if number is not None:
                values[name] = float(number)

    def _current_notes(self) -> tuple[str, ...]:
        notes = list(self._notes)
        newest = self._processes.newest
        if newest is not None and is_pressed(newest.host) and self._judgement.condition is not Condition.STARVED:
            notes.append("the host is short of CPU or memory, so far without effect on the server")
        return tuple(notes)

    # -- observations -------------------------------------------------------------------------------------------

    def _see_page(self, page: PageObservation) -> None:
        self._api.see_page(page)
        if page.layout is None or page.values is None:
            return
        columns = column_map(page.layout)
        if columns is not self._map:
            self._note_families(columns)
        self._map = columns
        numbers = columns.read(page.values)
        start_time = numbers.gauges.get("api_start_time_seconds")
        restarted = start_time is not None and self._start_time is not None and start_time != self._start_time
        if restarted:
            self._begin_anew(page.visible_at, "the server has restarted: its process start time changed")
        self._start_time = start_time if start_time is not None else self._start_time
        preempted = _COUNTER_SLOT["preemptions_total"]
        before = self._numbers.counters[preempted] if self._numbers is not None and not restarted else np.nan
        self._preempted_lately = max(0.0, float(np.nan_to_num(numbers.counters[preempted] - before)))
        self._counters.add(page.timestamp, numbers.counters, reset=restarted)
        self._buckets.add(page.timestamp, numbers.buckets, signature=columns.bucket_signature, reset=restarted)
        self._heartbeat.see_page(
            page.timestamp, columns.engine_labels, numbers.engines, numbers.gauges.get("api_open_fds")
        )
        if self._good_page is not None:
            self._page_gap_seconds = max(0.0, page.timestamp - self._good_page.timestamp)
        self._numbers, self._good_page, self._new_page = numbers, page, True
        self._pages += 1
        self._mark_ready(page.visible_at)
        if self._heartbeat.pulse().progress_age_seconds == 0.0 and self._pages > 1:
            self._processes.confirm_progress(page.timestamp)
            self._log.confirm_progress(page.timestamp)

    def _see_processes(self, observation: ProcessObservation) -> None:
        had_life = self._processes.life is not None
        if self._processes.see(observation):
            self._log.clear()
            self._startup.clear()
            self._startup.see(StartupPhase.PROCESS_UP, observation.timestamp)
            self._api.forget_failures()
            if had_life:
                self._begin_anew(observation.visible_at, "a new server process has appeared")
        roles = self._processes.living_roles()
        for role, phase in (("engine", StartupPhase.ENGINE_SPAWNED), ("worker", StartupPhase.WORKERS_SPAWNED)):
            if role in roles:
                self._startup.see(phase, observation.timestamp)
        if observation.established is not None:
            self._heartbeat.see_connections(observation.timestamp, observation.established)

    def _see_canary(self, canary: CanaryObservation) -> None:
        self._api.see_canary(canary)
        self._canary_tokens.append(canary.visible_at)
        timed_out = canary.failure is not None and canary.failure.kind == "timeout"
        self._heartbeat.see_canary(
            ok=canary.ok, timed_out=timed_out, began_at=canary.timestamp, ended_at=canary.visible_at
        )

    def _see_log(self, observation: LogObservation) -> None:
        self._see_phase(observation)
        signature = self._log.see(observation)
        if signature is None:
            return
        line = observation.line.strip()[:300]
        severity = Severity.INFO if signature in _HARMLESS else Severity.WARNING
        self._note_event(observation.visible_at, f"log_{signature}", f"server log: {line}", severity)
        if signature in (LogSignature.READY, LogSignature.STARTING):
            self._log.clear()
            self._log.see(observation)

    def _see_phase(self, observation: LogObservation) -> None:
        phase = phase_of_line(observation.line)
        if phase is None:
            return
        if phase is StartupPhase.CONFIG_PARSED and StartupPhase.ACCEPTING in self._startup.began_at:
            self._startup.clear()  # another start, of a server whose processes cannot be seen
        self._startup.see(phase, observation.visible_at)

    def _see_version(self, observation: VersionObservation) -> None:
        changed = [
            f"{what} {old} became {new}"
            for what, old, new in (
                ("version", self._version, observation.version),
                ("model", ", ".join(self._models), ", ".join(observation.models)),
            )
            if old and new and old != new
        ]
        failure = observation.models_failure
        if failure is not None and failure.kind == "http" and self._api.answered_once:
            message = f"the models are unknown, so no canary can be sent: {failure.message}"
            if message not in self._notes:
                self._notes[message] = None
                self._note_event(observation.visible_at, "models_unknown", message, Severity.WARNING)
        elif observation.models:
            self._notes = {note: None for note in self._notes if not note.startswith("the models are unknown")}
        self._version = observation.version or self._version
        self._models = observation.models or self._models
        if changed:
            message = f"the server is another one now: {'; '.join(changed)}"
            self._note_event(observation.visible_at, "server_changed", message, Severity.WARNING)

    def _begin_anew(self, at: float, message: str) -> None:
        """A new server process: what the old one did says nothing of this one."""
        self._heartbeat = Heartbeat()
        self._trends.clear()
        self._pages = 0
        self._api.forget_failures()
        self._note_event(at, "server_restarted", message, Severity.WARNING)

    def _mark_ready(self, at: float) -> None:
        self._startup.see(StartupPhase.ACCEPTING, at)
        life = self._processes.life
        if life is not None:
            life.was_ready = True

    def _note_families(self, columns: ColumnMap) -> None:
        at = self._api.page.visible_at if self._api.page is not None else 0.0
        messages = [f"metric {name} is not known to this version of vllm-monitor" for name in columns.unknown_families]
        if not columns.is_vllm:
            messages.append("the page has no vllm: metrics: is this a vLLM server?")
        else:
            messages.extend(f"the page lacks {name}" for name in columns.missing_names)
        if len(messages) > MOST_NOTES:
            messages = [*messages[:MOST_NOTES], "and many more metrics that are not known"]
        for message in messages:
            if message not in self._notes and len(self._notes) < 2 * MOST_NOTES:
                self._notes[message] = None
                self._note_event(at, "metric_families", message, Severity.INFO)

    def _note_event(self, at: float, event_type: str, message: str, severity: Severity) -> None:
        self._events.append(
            Event(timestamp=at, event_type=event_type, message=message, severity=severity, target=self.target)
        )

    def _view(self, now: float) -> View:
        grown = self._counters.increase(RATE_SECONDS)
        tokens: float | None = None
        while self._canary_tokens and self._canary_tokens[0] < now - 2 * RATE_SECONDS:
            self._canary_tokens.popleft()
        if grown is not None:
            tokens = float(np.nan_to_num(grown[1][_COUNTER_SLOT["generation_tokens_total"]]))
            newest = self._good_page.timestamp if self._good_page is not None else now
            tokens -= sum(1 for at in self._canary_tokens if newest - grown[0] <= at <= newest + 1.0)
        return View(
            now=now,
            api=self._api,
            processes=self._processes,
            log=self._log,
            pulse=self._heartbeat.pulse(),
            gauges=self._numbers.gauges if self._numbers is not None else {},
            pages=self._pages,
            tokens_lately=tokens,
            preempted_lately=self._preempted_lately if self._new_page else 0.0,
            new_page=self._new_page,
            inside=self._told_inside(now),
        )

    def _told_inside(self, now: float) -> tuple[EngineObservation, ...]:
        """What the part inside the server told lately, by each of its processes."""
        return tuple(one for one in self._inside.values() if abs(now - one.timestamp) <= INSIDE_OLD_SECONDS)
