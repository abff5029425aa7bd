"""From evidence to a condition: what is the matter with this server, in one word and one sentence.

The rules are asked in order and the first that has an answer gives it: deaths and stops first (nothing else
matters then), then silence, then the heartbeat, then load. Thresholds stand at the top, each with its reason.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from vllm_monitor.picture.evidence import ApiEvidence, LogEvidence, ProcessEvidence, ServerLife
from vllm_monitor.picture.heartbeat import Pulse
from vllm_monitor.picture.log_signatures import LogSignature
from vllm_monitor.records import Condition, EngineObservation, HostPressure

__all__ = ["Judge", "Judgement", "View", "is_pressed"]

STALL_SECONDS = 5.0
"""No engine step takes this long once a server is warm, unless its own history says so."""
STALL_SECONDS_MOST = 10.0
"""However slow a server has been before, this long without a token is a stall."""
PILING_SECONDS = 6.0
"""Connections that pile up are weaker evidence than requests in flight, so they must pile up for longer."""
WARM_UP_SECONDS = 60.0
"""The very first request of a server took up to 31 s on vLLM 0.24 to 0.31."""
LATCH_SECONDS = 60.0
"""A stall seen only by connections is believed this long after they stopped piling up."""
DEATH_LOOKS = 2
"""Looks at the process tree that must agree that a process is gone; one alone may be a reading error."""
CLOSED_PORT_SECONDS = 60.0
"""A shutdown that has closed the port is over after this long; a server that still runs then hangs."""
UNASKED_SECONDS = 3.0
"""A server whose process is seen for so long without a result of any probe has no open port (recordings)."""
SATURATED_WAITING = 10.0
SATURATED_KV_RATIO = 0.9
SATURATED_PAGES = 3
PRESSED_CPU_PERCENT = 50.0
PRESSED_MEMORY_PERCENT = 20.0
SLOW_SECONDS = 0.5
"""Median of ten answers. Healthy servers on pressed hosts reached 0.34 s, starved ones 0.6 s and more."""
SLOW_FACTOR = 4.0
SLOW_CANARY_SECONDS = 1.0
STARVED_HOLD_SECONDS = 5.0
STALE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Judgement:
    """A condition and why."""

    condition: Condition
    reason: str


@dataclass(frozen=True, slots=True)
class View:
    """Everything a judgement may look at, as of one tick.

    Args:
        now: Unix seconds.
        api: How the API server answers.
        processes: The process tree; ``newest`` is ``None`` for a server that is not local.
        log: What the log told.
        pulse: The progress heartbeat.
        gauges: Canonical gauges of the newest page.
        pages: Good pages seen of this server process.
        tokens_lately: Tokens generated in the last 10 s, without those of our canaries; ``None`` when unknown.
        preempted_lately: Preemptions since the page before.
        new_page: Whether a good page has come since the last judgement.
        inside: What our part inside the server told lately, if there is one.
    """

    now: float
    api: ApiEvidence
    processes: ProcessEvidence
    log: LogEvidence
    pulse: Pulse
    gauges: Mapping[str, float]
    pages: int
    tokens_lately: float | None
    preempted_lately: float
    new_page: bool
    inside: tuple[EngineObservation, ...] = ()

    @property
    def host(self) -> HostPressure | None:
        """Pressure on the server's host, where it is ours."""
        return self.processes.newest.host if self.processes.newest is not None else None


def _stalled_inside(one: EngineObservation) -> float:
    return one.stalled_seconds


def is_pressed(host: HostPressure | None) -> bool:
    """Whether tasks on the host wait for CPU or memory."""
    if host is None:
        return False
    if host.memory_some_avg10 is not None and host.memory_some_avg10 >= PRESSED_MEMORY_PERCENT:
        return True
    if host.cpu_some_avg10 is not None:
        return host.cpu_some_avg10 >= PRESSED_CPU_PERCENT
    return host.cpu_percent is not None and host.cpu_percent >= 97.0


class Judge:
    """Decides the condition of one target, tick by tick.

    Keeps only what hysteresis needs. Not thread-safe: one owner.
    """

    def __init__(self) -> None:
        self._last = Judgement(Condition.UNKNOWN, "nothing seen yet")
        self._full_pages: deque[bool] = deque(maxlen=SATURATED_PAGES)
        self._saturated = False
        self._stalled_by_pile_at: float | None = None
        self._starved_until = 0.0
        self._now = 0.0
        self._latencies: deque[float] = deque(maxlen=300)
        self._canary_latencies: deque[float] = deque(maxlen=100)
        self._rules = (
            self._gone,
            self._starting_or_unreachable,
            self._stopped_by_signal,
            self._paused,
            self._silent,
            self._too_little_seen,
            self._stalled,
            self._saturation,
            self._starvation,
        )

    def decide(self, view: View) -> Judgement:
        """The condition as of ``view.now``."""
        self._remember(view)
        for rule in self._rules:
            judgement = rule(view)
            if judgement is not None:
                break
        else:
            judgement = self._fine(view)
        self._last = judgement
        return judgement

    def _remember(self, view: View) -> None:
        if view.now < self._now:  # the clock was set back: times that lie ahead of it now mean nothing
            self._stalled_by_pile_at = None
            self._starved_until = 0.0
            view.api.forget_latencies(view.now)
        self._now = view.now
        if view.api.latencies_seconds:
            self._latencies.append(view.api.latencies_seconds[-1])
        if view.api.canary is not None and view.api.canary.ok:
            self._canary_latencies.append(view.api.canary.latency_seconds)
        if view.new_page:
            waiting = view.gauges.get("requests_waiting", 0.0)
            full = view.gauges.get("kv_cache_usage_ratio", 0.0) > SATURATED_KV_RATIO
            pressed = full or view.preempted_lately > 0 or waiting >= SATURATED_WAITING
            self._full_pages.append(waiting > 0 and pressed)
            if len(self._full_pages) == SATURATED_PAGES:
                if all(self._full_pages):
                    self._saturated = True
                elif not any(self._full_pages):
                    self._saturated = False

    # -- deaths -------------------------------------------------------------------------------------------------

    def _gone(self, view: View) -> Judgement | None:
        life, processes, log = view.processes.life, view.processes, view.log
        ended = life is not None and life.ended_at is not None and processes.looks_without("api") >= DEATH_LOOKS
        if log.shutting_down:
            if ended or (view.api.refused and life is None):
                return Judgement(Condition.STOPPED, "the server was shut down on request and has ended")
            return Judgement(Condition.STOPPED, "the server is shutting down on request: new requests are refused")
        if life is not None and life.port_closed_at is not None and not log.first_fatal:
            orderly = self._closed_its_port_first(view, life, ended=ended)
            if orderly is not None:
                return orderly
        because = f"; first fatal log line: {log.first_fatal}" if log.first_fatal else ""
        code = processes.newest.exit_code if processes.newest is not None else None
        if ended and code is not None:
            because = f"; the server exited with code {code}{because}"
        if life is not None:
            roles = sorted(
                (role for role in life.missing if processes.looks_without(role) >= DEATH_LOOKS or ended),
                key=lambda role: (life.missing[role], role),
            )
            # An API server follows its engine within a second, an engine its API server only later: when one
            # look finds both gone, it was the engine. The API server that went first is what died otherwise.
            roles = [role for role in roles if not ended or life.missing[role] <= (life.ended_at or 0.0)]
            if roles:
                return self._death(roles[0], f"the {roles[0]} process is gone{because}")
        if log.first_death is not None:
            role = "worker" if log.first_death is LogSignature.WORKER_DIED else "engine"
            return self._death(role, f"the log says that the {role} died{because}")
        if view.api.last_503_at is not None:
            return self._death("engine", f"/health answered 503, which vLLM does only when its engine is dead{because}")
        if ended:
            return Judgement(
                Condition.API_DEAD,
                f"the API server process is gone, with no sign of a clean shutdown{because}",
            )
        return None

    @staticmethod
    def _closed_its_port_first(view: View, life: ServerLife, *, ended: bool) -> Judgement | None:
        """A server that is asked to stop closes its port and then ends its engine; one that dies does not."""
        if view.api.last_503_at is not None or life.port_closed_at is None:
            return None
        closed_seconds = view.now - life.port_closed_at
        if not ended and closed_seconds > CLOSED_PORT_SECONDS:
            return Judgement(
                Condition.API_DEAD,
                f"process {life.api_pid} has closed its port {closed_seconds:.0f} s ago and does not end",
            )
        sign = "its port was closed before its processes ended, as in a requested shutdown"
        return Judgement(
            Condition.STOPPED,
            f"the server {'has stopped' if ended else 'is stopping'}: {sign} (only its log can tell: --log-file)",
        )

    def _death(self, role: str, reason: str) -> Judgement:
        condition = Condition.WORKER_DEAD if role == "worker" else Condition.ENGINE_DEAD
        if self._last.condition in (Condition.WORKER_DEAD, Condition.ENGINE_DEAD):
            condition = self._last.condition  # the others die of the first death
        return Judgement(condition, reason)

    def _starting_or_unreachable(self, view: View) -> Judgement | None:
        life, api = view.processes.life, view.api
        failure = api.page_failure
        if life is not None and life.ended_at is None:
            unasked = api.page is None and view.now - life.began_at >= UNASKED_SECONDS
            if not api.refused and (life.was_ready or not unasked):
                return None
            if not life.was_ready:
                seconds = view.now - life.began_at
                return Judgement(
                    Condition.STARTING,
                    f"the server process {life.api_pid} runs but its port is still closed (for {seconds:.0f} s)",
                )
            return self._last
        if view.log.starting and not api.answered_once:
            return Judgement(Condition.STARTING, "the log says that the server is starting; its port is still closed")
        if failure is None or api.failures_in_a_row == 0:
            return None
        if failure.kind == "timeout" and (api.answered_once or api.timeouts_in_a_row < 2):
            return None
        if failure.kind in ("refused", "dns", "tls", "reset", "other", "timeout"):
            if api.answered_once and api.failures_in_a_row < 2:
                return self._last
            return Judgement(Condition.UNREACHABLE, failure.message)
        return None

    # -- silence ------------------------------------------------------------------------------------------------

    def _stopped_by_signal(self, view: View) -> Judgement | None:
        for role, condition in (
            ("engine", Condition.STALLED),
            ("worker", Condition.STALLED),
            ("api", Condition.API_FROZEN),
        ):
            process = view.processes.stopped(role)
            if process is not None:
                return Judgement(
                    condition,
                    f"the {role} process {process.pid} is stopped (state T): nothing moves until it gets SIGCONT",
                )
        return None

    def _paused(self, view: View) -> Judgement | None:
        if view.api.is_paused:
            return Judgement(Condition.PAUSED, "/is_paused says that generation is paused")
        if view.gauges.get("engine_awake", 1.0) == 0.0:
            return Judgement(Condition.PAUSED, "the sleep gauge says that the engine sleeps")
        if view.api.is_paused is None and any(one.is_paused for one in view.inside):
            return Judgement(Condition.PAUSED, "a lever inside the server has paused generation")
        return None

    def _silent(self, view: View) -> Judgement | None:
        api = view.api
        if api.timeouts_in_a_row < 2 or api.silent_since is None:
            return None
        silence = f"/metrics and /health have not answered for {view.now - api.silent_since:.0f} s"
        busy = self._saturated or view.gauges.get("requests_waiting", 0.0) >= SATURATED_WAITING
        if view.processes.life is None:
            if busy:
                return Judgement(Condition.SATURATED, f"{silence}; requests were queueing when it fell silent")
            if api.timeouts_in_a_row >= 4:
                return Judgement(
                    Condition.API_FROZEN,
                    f"{silence} (the server's host cannot be seen from here: it may be starved)",
                )
            return self._last
        cpu = view.processes.cpu_ratio("api") or 0.0
        if view.processes.wants_cpu("api") or cpu > 0.02:
            if busy:
                return Judgement(Condition.SATURATED, f"{silence}: the API server is busy and requests queue")
            if is_pressed(view.host):
                return Judgement(Condition.STARVED, f"{silence} and the host is short of CPU or memory")
            if api.timeouts_in_a_row >= 6:
                return Judgement(Condition.API_FROZEN, f"{silence}: the API server runs but answers nobody")
            return self._last
        return Judgement(Condition.API_FROZEN, f"{silence} and the API server uses no CPU")

    def _too_little_seen(self, view: View) -> Judgement | None:
        failure = view.api.page_failure
        if failure is not None and failure.kind in ("http", "not_metrics", "too_large", "truncated"):
            return Judgement(Condition.UNKNOWN, failure.message)
        if view.pages < 2:
            reason = "too little seen yet: two pages of metrics are needed" if failure is None else failure.message
            return Judgement(Condition.UNKNOWN, reason)
        last = view.api.last_answer_at
        if last is not None and view.now - last > STALE_SECONDS and view.api.failures_in_a_row:
            return Judgement(Condition.UNKNOWN, f"no answer for {view.now - last:.0f} s")
        return None

    # -- progress -----------------------------------------------------------------------------------------------

    def _stalled(self, view: View) -> Judgement | None:
        pulse = view.pulse
        limit = min(max(2.0 * pulse.longest_gap_seconds, STALL_SECONDS), STALL_SECONDS_MOST)
        if view.host is None and view.api.usual_latency_seconds > SLOW_SECONDS:
            limit = STALL_SECONDS_MOST  # it may be its host, which we cannot see
        if not pulse.tokens_served:
            limit = WARM_UP_SECONDS
        starving = self._starving(view)
        if starving and pulse.stuck_seconds >= 3.0:
            self._starved_until = view.now + STARVED_HOLD_SECONDS
            return Judgement(
                Condition.STARVED,
                f"no token for {pulse.stuck_seconds:.0f} s: engine and workers are runnable but get no CPU",
            )
        piled = pulse.piling_seconds >= PILING_SECONDS and pulse.progress_age_seconds >= PILING_SECONDS
        if piled and not starving and pulse.tokens_served:
            self._stalled_by_pile_at = view.now
        elif self._stalled_by_pile_at is not None:
            since = view.now - self._stalled_by_pile_at
            if pulse.progress_age_seconds < since + 1.0 or since > LATCH_SECONDS:
                self._stalled_by_pile_at = None
        inside = max((one for one in view.inside if one.stalled_seconds > 0), key=_stalled_inside, default=None)
        if inside is not None and not starving:
            return Judgement(
                Condition.STALLED,
                f"no engine step for {inside.stalled_seconds:.0f} s although {inside.in_flight:.0f} requests are in "
                "flight, says our part inside the server",
            )
        if pulse.stuck_seconds < limit and self._stalled_by_pile_at is None:
            return None
        who = pulse.waiting_evidence() or "connections were piling up"
        seconds = max(pulse.stuck_seconds, min(pulse.progress_age_seconds, pulse.piling_seconds))
        reason = f"no token and no engine step for {seconds:.0f} s although work waits ({who})"
        if view.api.health is not None and view.api.health.status == 200:
            reason += "; /health says 200 all the same"
        if view.api.is_paused is None and "engine_awake" not in view.gauges:
            reason += "; a pause cannot be told from a stall here: neither /is_paused nor the sleep gauge exists"
        elif view.api.is_paused is None:
            reason += "; it does not sleep, but a /pause cannot be told from a stall here: /is_paused is not served"
        return Judgement(Condition.STALLED, reason)

    @staticmethod
    def _starving(view: View) -> bool:
        """The engine would work if the host let it."""
        if not is_pressed(view.host) or not view.processes.wants_cpu("engine", "worker"):
            return False
        cpu = view.processes.cpu_ratio("engine", "worker")
        return cpu is not None and cpu < 0.5

    def _saturation(self, view: View) -> Judgement | None:
        if not self._saturated:
            return None
        waiting = view.gauges.get("requests_waiting", 0.0)
        kv = view.gauges.get("kv_cache_usage_ratio", 0.0)
        return Judgement(
            Condition.SATURATED,
            f"{waiting:.0f} requests wait, KV cache {kv:.0%} full: more comes in than goes out",
        )

    def _starvation(self, view: View) -> Judgement | None:
        if not is_pressed(view.host):
            self._starved_until = 0.0
            return None
        effects = []
        recent = view.api.usual_latency_seconds
        usual = statistics.quantiles(self._latencies, n=5)[0] if len(self._latencies) >= 10 else 0.0
        if recent > max(SLOW_SECONDS, SLOW_FACTOR * usual):
            effects.append(f"answers take {recent:.2f} s (usually {usual:.2f} s)")
        canaries = view.api.canary_latencies_seconds
        canary = statistics.median(canaries) if len(canaries) == canaries.maxlen else 0.0
        usual = statistics.quantiles(self._canary_latencies, n=5)[0] if len(self._canary_latencies) >= 5 else 0.0
        if canary > max(SLOW_CANARY_SECONDS, SLOW_FACTOR * usual):
            effects.append(f"our canary takes {canary:.2f} s (usually {usual:.2f} s)")
        if effects:
            self._starved_until = view.now + STARVED_HOLD_SECONDS
            return Judgement(Condition.STARVED, f"the host is short of CPU or memory and {', '.join(effects)}")
        if view.now < self._starved_until and self._last.condition is Condition.STARVED:
            return self._last
        return None

    def _fine(self, view: View) -> Judgement:
        running, waiting = view.gauges.get("requests_running", 0.0), view.gauges.get("requests_waiting", 0.0)
        load = f"{running:.0f} requests running, {waiting:.0f} waiting"
        if running + waiting > 0:
            if view.pulse.tokens_served and not view.pulse.ever_progressed:
                # A watch that begins in the middle of a stall must not say for its first seconds that all is well.
                return Judgement(Condition.UNKNOWN, f"{load}, and no progress seen yet: too early to tell")
            silent = view.tokens_lately is not None and view.tokens_lately <= 0
            return Judgement(Condition.OK, f"{load}, {'no token lately' if silent else 'tokens flow'}")
        if view.tokens_lately is not None and view.tokens_lately <= 0:
            return Judgement(Condition.IDLE, "nothing to do")
        return Judgement(Condition.OK, "requests come and go, tokens flow")
