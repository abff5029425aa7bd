"""The simulated server in simulated time: arrivals, engine, faults, and the pages it would show."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Callable, Iterable
from functools import partial

from vllm_monitor.clock import make_random
from vllm_monitor.errors import ConfigurationError, TargetUnreachableError
from vllm_monitor.records import Layout
from vllm_monitor.simulator.clients import BackgroundClients
from vllm_monitor.simulator.exposition import Exposition
from vllm_monitor.simulator.fault_board import FaultBoard
from vllm_monitor.simulator.faults import Fault, FaultKind
from vllm_monitor.simulator.phases import ENGINE_DEAD, SHUTTING_DOWN, Lever, ServerPhase
from vllm_monitor.simulator.request import Request
from vllm_monitor.simulator.server_life import ServerLife
from vllm_monitor.simulator.settings import ServerSettings
from vllm_monitor.simulator.timeline import Timeline
from vllm_monitor.simulator.workload import Arrival, Workload

__all__ = ["Simulator"]

_USUAL_START_SECONDS = 30.0


class Simulator:
    """A vLLM server that exists only in simulated time. Deterministic; not thread-safe.

    The same settings, seed, faults and arrivals give the same pages, whatever the steps of :meth:`advance`
    (up to the rounding of sums).

    Args:
        settings: Size, speed and load.
        seed: Seed of all randomness.
        faults: Faults known in advance; their times count from the beginning of the simulation.
        arrivals: Requests known in advance, beside the random ones.
        start_time: Unix seconds of the beginning.
    """

    def __init__(
        self,
        settings: ServerSettings | None = None,
        *,
        seed: int = 0,
        faults: Iterable[Fault] = (),
        arrivals: Iterable[Arrival] = (),
        start_time: float = 1_750_000_000.0,
    ) -> None:
        self.settings = settings or ServerSettings()
        self.start_time = start_time
        self._seed = seed
        self._now = 0.0
        workload = Workload(self.settings.load, self.settings.engine, self._random(0), arrivals)
        self.clients = BackgroundClients(workload)
        self._exposition = Exposition(self.settings)
        self._board = FaultBoard()
        self._timeline = Timeline()
        self._levers: list[Callable[[], None]] = []
        self._paused_by_call = False
        self._frozen_since = math.nan
        self._lives = 0
        self._life: ServerLife | None = None
        self._phase = ServerPhase.DOWN
        self._down_until = 0.0
        self._process_started_at = -_USUAL_START_SECONDS
        for fault in faults:
            self.inject(fault)
        self._timeline.plan(0.0, self._boot)
        self._timeline.run_due(0.0)

    @property
    def now_seconds(self) -> float:
        """Simulated seconds since the beginning."""
        return self._now

    @property
    def unix_time(self) -> float:
        """Simulated time as unix seconds."""
        return self.start_time + self._now

    @property
    def phase(self) -> ServerPhase:
        """What the server is doing."""
        return self._phase

    @property
    def reachable(self) -> bool:
        """Whether the port accepts connections."""
        return self._phase is not ServerPhase.DOWN

    @property
    def visible_in_flight(self) -> int:
        """Requests whose clients are connected and wait; each holds a file descriptor."""
        return self._life.in_flight if self._life else 0

    @property
    def scrape_latency_seconds(self) -> float:
        """How long the server would take to answer ``/metrics`` or ``/health`` now."""
        return self._life.scrape_latency_seconds if self._life else 0.0

    @property
    def is_paused(self) -> bool:
        """Whether the engine is paused on purpose."""
        return self._life is not None and self._life.engine.paused

    @property
    def active_faults(self) -> tuple[Fault, ...]:
        """Faults that act now."""
        return tuple(self._board.active)

    @property
    def planned_faults(self) -> tuple[Fault, ...]:
        """Faults still to come."""
        return tuple(self._board.planned)

    @property
    def layout(self) -> Layout:
        """The columns of every scrape; always the same object."""
        return self._exposition.layout

    @property
    def life(self) -> ServerLife | None:
        """The present life of the server, for tests and reports; ``None`` while it is down."""
        return self._life

    def health_status(self) -> int | None:
        """What ``/health`` answers: 200, 503, or ``None`` when the port is closed."""
        return {ServerPhase.SERVING: 200, ServerPhase.FAILING: 503, ServerPhase.DOWN: None}[self._phase]

    def scrape(self) -> tuple[Layout, array[float]]:
        """The page as a row of values.

        Raises:
            TargetUnreachableError: While the port is closed.
        """
        return self.layout, self._exposition.values(self._reachable_life().readings(self._now))

    def page(self) -> str:
        """The page of ``/metrics`` as Prometheus text.

        Raises:
            TargetUnreachableError: While the port is closed.
        """
        life = self._reachable_life()
        return self._exposition.page(life.readings(self._now), self.start_time + life.ready_at)

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` of simulated time pass.

        Raises:
            ConfigurationError: When ``seconds`` is negative.
        """
        if not seconds >= 0:
            raise ConfigurationError(f"cannot advance by {seconds} s", hint="Give 0 or a number above 0.")
        target = self._now + seconds
        while True:
            moment = min(target, self.clients.next_at, self._timeline.next_at)
            if self._life is not None and self._phase is ServerPhase.SERVING:
                self._life.engine.run_until(moment)
            self._now = moment
            for request in self.clients.give_up_due(moment):
                self.abandon(request)
            self._timeline.run_due(moment)
            for request in self.clients.send_due(moment):
                self._arrive(request)
            if moment >= target:
                return

    def submit(self, prompt_tokens: int, max_tokens: int, *, output_tokens: int | None = None) -> Request:
        """Send a request now.

        Args:
            prompt_tokens: Length of the prompt.
            max_tokens: Most tokens that the client wants.
            output_tokens: Tokens after which the answer ends by itself; ``max_tokens`` when not given.

        Raises:
            ConfigurationError: When the lengths make no sense for the model.
            TargetUnreachableError: While the server is not serving.
        """
        longest = self.settings.engine.max_model_len
        if prompt_tokens < 1 or max_tokens < 1 or prompt_tokens + max_tokens > longest:
            raise ConfigurationError(
                f"a prompt of {prompt_tokens} and an answer of {max_tokens} tokens do not fit the model",
                hint=f"Give at least one token each and at most {longest} together.",
            )
        life = self._reachable_life()
        if self._phase is not ServerPhase.SERVING:
            raise TargetUnreachableError(ENGINE_DEAD, hint="Wait until the simulated server is back.")
        output = max_tokens if output_tokens is None else max(1, min(output_tokens, max_tokens))
        request = Request(prompt_tokens, output, max_tokens, self._now)
        life.accept(request)
        return request

    def abandon(self, request: Request) -> None:
        """The client of ``request`` hangs up; nothing happens when it is over."""
        if not request.is_over and self._life is not None:
            self._life.client_gone(request, self._now)

    def pause(self, *, abort: bool = False) -> Lever:
        """Pause the engine, as ``POST /pause`` does; running requests are kept, or ended with ``abort``."""
        return self._pull(partial(self._set_paused, paused=True, abort=abort))

    def resume(self) -> Lever:
        """Resume a paused engine, also one that a fault paused."""
        return self._pull(partial(self._set_paused, paused=False, abort=False))

    def inject(self, fault: Fault) -> None:
        """Plan a fault; a start in the past means now."""
        self._board.planned.append(fault)
        self._timeline.plan(max(self._now, fault.start_seconds), partial(self._begin, fault))
        if fault.start_seconds <= self._now and self._lives:
            self._timeline.run_due(self._now)

    def clear_faults(self) -> None:
        """End all faults and forget the planned ones; a server that is down comes up."""
        self._board.clear()
        self._apply()
        if self._phase is not ServerPhase.SERVING:
            self._down_until = self._now
            self._boot()

    def _begin(self, fault: Fault) -> None:
        if not self._board.begin(fault):
            return
        if fault.kind is FaultKind.CRASH:
            self._crash(fault)
        elif fault.kind is FaultKind.SLOW_START:
            self._go_down(fault.end_seconds, SHUTTING_DOWN)
        if math.isfinite(fault.end_seconds):
            self._timeline.plan(max(self._now, fault.end_seconds), partial(self._finish, fault))
        self._apply()

    def _finish(self, fault: Fault) -> None:
        if self._board.end(fault):
            self._apply()

    def _apply(self) -> None:
        """Make the active faults felt."""
        board = self._board
        self.clients.workload.modify(
            self._now, rate_multiplier=board.rate_multiplier, output_multiplier=board.output_multiplier
        )
        life = self._life
        if life is None:
            return
        self._set_frozen(life, frozen=board.has(FaultKind.FREEZE))
        life.engine.paused = self._paused_by_call or board.has(FaultKind.PAUSE)
        life.engine.slowness = board.step_multiplier
        life.engine.blocks.withhold(board.withheld_ratio)
        life.process.leak(self._now, board.leak_bytes_per_second)
        limit = self.settings.memory_limit_bytes
        if board.leak_bytes_per_second and math.isfinite(limit):
            full_at = self._now + life.process.seconds_until(limit, self._now)
            self._timeline.plan(full_at, partial(self._kill_if_full, life))

    def _set_frozen(self, life: ServerLife, *, frozen: bool) -> None:
        if frozen and not life.engine.frozen:
            life.engine.frozen = True
            self._frozen_since = self._now
        elif life.engine.frozen and not frozen:
            life.engine.thaw(self._now - self._frozen_since)
            levers, self._levers = self._levers, []
            for pull in levers:
                pull()

    def _set_paused(self, lever: Lever, *, paused: bool, abort: bool) -> None:
        self._paused_by_call = paused
        if not paused:
            self._board.drop(FaultKind.PAUSE)
        if self._life is not None:
            if abort:
                self._life.engine.abort_all()
            self._life.engine.paused = paused
        lever.applied = True

    def _pull(self, action: Callable[[Lever], None]) -> Lever:
        lever = Lever()
        if self._life is not None and self._life.engine.frozen:
            self._levers.append(partial(action, lever))
        else:
            action(lever)
        return lever

    def _crash(self, fault: Fault) -> None:
        away = fault.duration_seconds or self.settings.restart_seconds
        back_at = self._now + away if fault.restart and self.settings.restarts else math.inf
        if self._life is None or self._phase is not ServerPhase.SERVING:
            self._go_down(back_at, ENGINE_DEAD)
            return
        self._down_until = back_at
        self._phase = ServerPhase.FAILING
        self.clients.failed += self._life.fail_all(ENGINE_DEAD, self._now)
        linger = min(self.settings.failing_seconds, away / 2)
        self._timeline.plan(self._now + linger, partial(self._close_after, self._life))
        if math.isfinite(back_at):
            self._timeline.plan(back_at, self._boot)

    def _close_after(self, life: ServerLife) -> None:
        if self._life is life:
            self._go_down(self._down_until, ENGINE_DEAD)

    def _go_down(self, until: float, message: str) -> None:
        """Close the port until ``until``, or longer when it is closed for longer already."""
        self._down_until = until if self._phase is ServerPhase.SERVING else max(self._down_until, until)
        if self._life is not None:
            self.clients.failed += self._life.fail_all(message, self._now)
            self._process_started_at = self._now
            self._board.drop(FaultKind.FREEZE, FaultKind.PAUSE)  # they end with the process they befell
        self._life = None
        self._phase = ServerPhase.DOWN
        self._levers.clear()
        self._paused_by_call = False
        if math.isfinite(self._down_until):
            self._timeline.plan(self._down_until, self._boot)

    def _kill_if_full(self, life: ServerLife) -> None:
        limit = self.settings.memory_limit_bytes
        if self._life is life and life.process.resident_bytes(self._now, life.in_flight) >= limit - 4096:
            away = self.settings.restart_seconds if self.settings.restarts else math.inf
            self._go_down(self._now + away, SHUTTING_DOWN)

    def _boot(self) -> None:
        if self._phase is ServerPhase.SERVING or self._now < self._down_until:
            return
        self._lives += 1
        self._life = ServerLife(
            self.settings,
            self._random(self._lives),
            ready_at=self._now,
            process_started_at_unix_seconds=self.start_time + self._process_started_at,
        )
        self._phase = ServerPhase.SERVING
        self._board.drop(FaultKind.CRASH, FaultKind.SLOW_START)
        self._apply()

    def _arrive(self, request: Request) -> None:
        if self._life is None:
            self.clients.refused += 1
        elif self._phase is ServerPhase.FAILING:
            self.clients.failed += 1
            request.failure = ENGINE_DEAD
            self._life.http.completion("5xx", 0.005, request.prompt_tokens, 0)
        else:
            self._life.accept(request)
            self.clients.wait_for(request)

    def _reachable_life(self) -> ServerLife:
        if self._life is None:
            raise TargetUnreachableError(
                "the simulated server does not listen now", hint="Advance until it is reachable again."
            )
        return self._life

    def _random(self, purpose: int) -> random.Random:
        return make_random(self._seed * 1_000_003 + purpose)
