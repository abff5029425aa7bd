"""Simulated servers that fail, for the benchmark of predictions: six hours each, driven by real arrival traces.

In each run every kind of failure comes once, in random order, and between them there are disturbances of the same
kinds that come to nothing. Sizes, speeds and limits of the server are drawn for each run, and nobody is told them.
"""

from __future__ import annotations

import csv
import io
import math
import random
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.records import HealthObservation, Layout, Observation, PageObservation, ProbeFailure
from vllm_monitor.simulator import Arrival, EngineSettings, Fault, FaultKind, LoadSettings, ServerSettings, Simulator

__all__ = ["KINDS", "PRECURSOR_KINDS", "TICK_SECONDS", "Failure", "Run", "Trace", "load_traces", "simulate"]

TICK_SECONDS = 5.0
RUN_SECONDS = 6 * 3600.0
WARM_UP_SECONDS = 1_800.0
START = 1_750_000_000.0
TARGET = "http://simulated"
KINDS = ("leak", "surge", "kv_exhaustion", "hang", "background_overload", "sudden")
PRECURSOR_KINDS = KINDS[:-1]
_SLOT_SECONDS = 3_250.0
_LONGEST_PROMPT, _LONGEST_OUTPUT = 7_000, 1_000

Trace = list[tuple[float, int, int]]
"""Seconds, prompt tokens, output tokens."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One failure that was planned: its disturbance, and when the server is well again.

    Args:
        kind: One of :data:`KINDS`.
        begins_at: Unix seconds at which its first cause sets in.
        ends_at: Unix seconds at which its last cause has gone.
    """

    kind: str
    begins_at: float
    ends_at: float


@dataclass(slots=True)
class Run:
    """What a monitor saw in one run, and the truth.

    Args:
        seed: Of everything in it.
        layout: Series of the page.
        times: Unix seconds of the ticks.
        pages: A row for each tick; NaN all over where no page came.
        latencies: Seconds that the page took.
        health: Status of ``/health``; 0 where the port was closed.
        failures: The disturbances that were meant to end in failure.
        memory_limit_bytes: What the server may use, where a monitor would know it; NaN otherwise.
    """

    seed: int
    layout: Layout
    times: NDArray[np.float64]
    pages: NDArray[np.float64]
    latencies: NDArray[np.float64]
    health: NDArray[np.int64]
    failures: list[Failure] = field(default_factory=list)
    memory_limit_bytes: float = math.nan

    def ticks(self) -> Iterator[tuple[float, list[Observation]]]:
        """What became visible with each tick."""
        closed = ProbeFailure(kind="refused", message="connection refused")
        for index, now in enumerate(self.times.tolist()):
            latency, status = float(self.latencies[index]), int(self.health[index])
            asked_at = now - latency
            failure = None if status else closed
            up = not math.isnan(self.pages[index, 0])
            yield (
                now,
                [
                    PageObservation(
                        target=TARGET,
                        timestamp=asked_at,
                        latency_seconds=latency,
                        status=200 if up else (status or None),
                        failure=None if up else failure,
                        layout=self.layout if up else None,
                        values=self.pages[index] if up else None,
                    ),
                    HealthObservation(
                        target=TARGET,
                        timestamp=asked_at,
                        latency_seconds=latency,
                        status=status or None,
                        failure=failure,
                    ),
                ],
            )


def load_traces(archive: Path) -> list[Trace]:
    """The arrival traces of the archive ``azure_llm_2023.tar.gz``."""
    traces = []
    with tarfile.open(archive) as tar:
        for name in sorted(tar.getnames()):
            member = tar.extractfile(name) if name.endswith(".csv") else None
            if member is None:
                continue
            rows = list(csv.DictReader(io.TextIOWrapper(member, "utf-8")))
            times = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
            traces.append(
                [
                    (
                        at - times[0],
                        min(int(row["ContextTokens"]), _LONGEST_PROMPT),
                        min(int(row["GeneratedTokens"]), _LONGEST_OUTPUT),
                    )
                    for at, row in zip(times, rows, strict=True)
                ]
            )
    return traces


def simulate(seed: int, traces: Sequence[Trace]) -> Run:
    """One run; the same seed gives the same run."""
    dice = random.Random(seed)
    trace = dice.choice(traces)
    # As an operator would size it: the busiest moments of the trace, when many long prompts come at once, are served.
    prompt_cost = dice.uniform(3e-5, 8e-5) * 1.6 / _burstiness(trace)
    engine = EngineSettings(
        max_num_seqs=dice.randint(20, 48),
        max_num_batched_tokens=4096,
        num_blocks=dice.randint(1_800, 4_200),
        max_model_len=8_192,
        step_base_seconds=dice.uniform(0.016, 0.03),
        seconds_per_prompt_token=prompt_cost,
        seconds_per_sequence=dice.uniform(2e-4, 8e-4),
        step_jitter_ratio=dice.uniform(0.04, 0.15),
    )
    limit_bytes = dice.uniform(2.5e9, 1.2e10)
    plan = _Plan(dice, trace, engine, limit_bytes)
    settings = ServerSettings(
        engine=engine,
        load=LoadSettings(requests_per_second=0.0, client_timeout_seconds=120.0),
        restart_seconds=dice.uniform(30.0, 90.0),
        memory_limit_bytes=limit_bytes,
    )
    simulator = Simulator(settings, seed=seed, faults=plan.faults, arrivals=plan.arrivals, start_time=START)
    count = int(RUN_SECONDS / TICK_SECONDS)
    layout = simulator.layout
    run = Run(
        seed,
        layout,
        times=START + TICK_SECONDS * np.arange(1, count + 1, dtype=np.float64),
        pages=np.full((count, len(layout.series)), np.nan),
        latencies=np.full(count, 0.003),
        health=np.zeros(count, dtype=np.int64),
        failures=plan.failures,
    )
    for index in range(count):
        simulator.advance(TICK_SECONDS)
        run.health[index] = simulator.health_status() or 0
        if simulator.health_status() == 200:
            run.latencies[index] = min(3.0, 0.003 + simulator.scrape_latency_seconds)
            run.pages[index] = simulator.scrape()[1]
    return run


def _burstiness(trace: Trace) -> float:
    """Rate of the busiest of 500 stretches of ten seconds against the mean."""
    counts = np.bincount((np.array([one[0] for one in trace]) / 10.0).astype(int))
    return float(np.quantile(counts, 0.998) / counts.mean())


class _Plan:
    """Who comes when, and what goes wrong when."""

    def __init__(self, dice: random.Random, trace: Trace, engine: EngineSettings, limit: float) -> None:
        self._dice = dice
        self._trace = trace
        self._limit_bytes = limit
        self._prompt = sum(one[1] for one in self._trace) / len(self._trace)
        self._output = sum(one[2] for one in self._trace) / len(self._trace)
        self._capacity = self._requests_per_second(engine)
        self._cache_tokens = engine.num_blocks * engine.block_size
        self._step_seconds = engine.step_base_seconds + 10 * engine.seconds_per_sequence
        self.faults: list[Fault] = []
        self.failures: list[Failure] = []
        usual = self._capacity * dice.uniform(0.35, 0.7) / _burstiness(self._trace)
        self.arrivals = list(self._stream(0.0, RUN_SECONDS, lambda at: usual * (1.0 + 0.35 * self._tide(at))))
        kinds = list(KINDS)
        dice.shuffle(kinds)
        for number, kind in enumerate(kinds):
            begin = WARM_UP_SECONDS + number * _SLOT_SECONDS + dice.uniform(0.0, 700.0)
            end = self._disturb(kind, begin, 1.0)
            self.failures.append(Failure(kind, START + begin, START + end))
            if dice.random() < 0.8:
                rest = WARM_UP_SECONDS + number * _SLOT_SECONDS + 2_450.0 + dice.uniform(0.0, 250.0)
                self._disturb(dice.choice(PRECURSOR_KINDS), max(rest, end + 200.0), dice.uniform(0.15, 0.6))

    def _requests_per_second(self, engine: EngineSettings) -> float:
        """About how many requests of this trace the server could serve."""
        at_once = min(engine.max_num_seqs, engine.num_blocks * engine.block_size / (self._prompt + self._output / 2))
        step = engine.step_base_seconds + at_once * engine.seconds_per_sequence
        return 1.0 / (self._output * step / at_once + self._prompt * engine.seconds_per_prompt_token)

    def _tide(self, at: float) -> float:
        return math.sin(2 * math.pi * at / 9_000.0 + self._limit_bytes)

    def _stream(self, begin: float, end: float, rate_at: object) -> Iterator[Arrival]:
        """Requests of the trace from a random place on, thinned or repeated to a rate that may change."""
        assert callable(rate_at)
        trace, seconds = self._trace, self._trace[-1][0]
        own_rate = len(trace) / seconds
        offset = self._dice.uniform(0.0, seconds)
        index = next(number for number, one in enumerate(trace) if one[0] >= offset)
        at, last = begin, trace[index][0]
        while at < end:
            index += 1
            if index >= len(trace):
                index, last = 0, trace[0][0]
            at += trace[index][0] - last
            last = trace[index][0]
            wanted = rate_at(at) / own_rate
            copies = int(wanted) + (self._dice.random() < wanted - int(wanted))
            for _ in range(copies):
                yield Arrival(at + self._dice.uniform(0.0, 1.0), trace[index][1], max(1, trace[index][2]))

    def _disturb(self, kind: str, begin: float, size: float) -> float:
        """Let something go wrong; below 1 it comes to nothing. When it is over."""
        return {
            "leak": self._leak,
            "surge": self._surge,
            "kv_exhaustion": self._fill_cache,
            "hang": self._hang,
            "background_overload": self._slow_down,
            "sudden": self._crash,
        }[kind](begin, size)

    def _leak(self, begin: float, size: float) -> float:
        seconds = self._dice.uniform(240.0, 1_300.0)
        rate = (self._limit_bytes - 7e8) / seconds
        length = seconds + 60.0 if size == 1.0 else seconds * size * 0.8
        self.faults.append(Fault(FaultKind.LEAK, begin, length, bytes_per_second=rate))
        return begin + length

    def _surge(self, begin: float, size: float) -> float:
        ramp, hold = self._dice.uniform(240.0, 1_100.0), self._dice.uniform(90.0, 240.0)
        peak = self._capacity * (self._dice.uniform(1.1, 2.0) if size == 1.0 else size)
        length = ramp + hold
        self.arrivals += self._stream(begin, begin + length, lambda at: peak * min(1.0, (at - begin) / ramp))
        return begin + length

    def _fill_cache(self, begin: float, size: float) -> float:
        """More and more long conversations, as many as fill the cache."""
        ramp, hold = self._dice.uniform(240.0, 1_100.0), self._dice.uniform(90.0, 240.0)
        share = self._dice.uniform(1.1, 1.6) if size == 1.0 else size
        output = 2_000
        tokens_each, life = 4_500.0, output * self._step_seconds
        most_per_second = share * self._cache_tokens / tokens_each / life
        at = begin
        while at < begin + ramp + hold:
            at += self._dice.expovariate(most_per_second)
            if self._dice.random() < (at - begin) / ramp:
                prompt = self._dice.randint(2_500, 4_500)
                self.arrivals.append(Arrival(at, prompt, self._dice.randint(1_500, 2_500)))
        return begin + ramp + hold

    def _hang(self, begin: float, size: float) -> float:
        """Ever more stutters, ever longer, until it stands still."""
        length = self._dice.uniform(180.0, 700.0)
        stutters = self._dice.randint(6, 18) if size == 1.0 else 1 + round(2 * size)
        for number in range(stutters):
            place = 1.0 - (1.0 - (number + 0.5) / stutters) ** 1.3
            pause = 1.5 + 3.0 * place * self._dice.uniform(0.5, 1.0)
            self.faults.append(Fault(FaultKind.FREEZE, begin + place * length, pause))
        if size < 1.0:
            return begin + length
        stop = self._dice.uniform(60.0, 150.0)
        self.faults.append(Fault(FaultKind.FREEZE, begin + length + 5.0, stop))
        return begin + length + stop + 5.0

    def _slow_down(self, begin: float, size: float) -> float:
        ramp, hold = self._dice.uniform(240.0, 1_100.0), self._dice.uniform(90.0, 240.0)
        most = self._dice.uniform(4.0, 9.0) if size == 1.0 else 1.0 + size
        steps = max(1, int(ramp / 15.0))
        for number in range(steps):
            factor = most ** ((number + 1) / steps)
            lasts = 15.0 if number < steps - 1 else hold
            self.faults.append(Fault(FaultKind.SLOWDOWN, begin + 15.0 * number, lasts, step_multiplier=factor))
        return begin + 15.0 * (steps - 1) + hold

    def _crash(self, begin: float, _size: float) -> float:
        self.faults.append(Fault(FaultKind.CRASH, begin))
        return begin + 60.0
