"""Short runs of small simulated servers, looked at every second: sudden faults, or bursts and idling.

Development data only: the shipped weights of the hazards come from these, from the long runs, and from recordings.
"""

from __future__ import annotations

import math
import random

import numpy as np

from prediction_runs import START, Run
from vllm_monitor.simulator import EngineSettings, Fault, FaultKind, LoadSettings, ServerSettings, Simulator

__all__ = ["short_run"]

FAULTY_SECONDS, HEALTHY_SECONDS = 1_500.0, 3_600.0


def short_run(seed: int, *, healthy: bool, busy: bool = False) -> Run:
    """One run; the same seed gives the same run.

    Args:
        seed: Of the dice.
        healthy: Nothing fails; bursts and idling alone.
        busy: There is always something to do, and nothing but that.
    """
    dice = random.Random(seed)
    engine = EngineSettings(
        max_num_seqs=dice.choice([16, 32, 64, 128]),
        num_blocks=dice.choice([200, 400, 800, 2048]),
        block_size=dice.choice([16, 32]),
        max_model_len=2_048,
        step_base_seconds=dice.uniform(0.006, 0.03),
        seconds_per_prompt_token=dice.uniform(2e-5, 2e-4),
        seconds_per_sequence=dice.uniform(1e-4, 1e-3),
    )
    load = LoadSettings(
        requests_per_second=dice.uniform(1.5, 3.5) if busy else dice.uniform(0.3, 3.5),
        mean_prompt_tokens=dice.uniform(60.0, 300.0),
        mean_output_tokens=dice.uniform(40.0, 150.0),
    )
    seconds = HEALTHY_SECONDS if healthy else FAULTY_SECONDS
    limit_bytes = dice.uniform(2e9, 8e9)
    simulator = Simulator(
        ServerSettings(engine=engine, load=load, memory_limit_bytes=limit_bytes),
        seed=seed,
        faults=[] if busy else _faults(dice, seconds, healthy=healthy),
        start_time=START,
    )
    count = int(seconds)
    run = Run(
        seed,
        simulator.layout,
        times=START + np.arange(1, count + 1, dtype=np.float64),
        pages=np.full((count, len(simulator.layout.series)), np.nan),
        latencies=np.full(count, 0.003),
        health=np.zeros(count, dtype=np.int64),
        memory_limit_bytes=limit_bytes if dice.random() < 0.6 else math.nan,
    )
    for index in range(count):
        simulator.advance(1.0)
        run.health[index] = simulator.health_status() or 0
        if simulator.health_status() == 200:
            run.latencies[index] = min(3.0, 0.003 + simulator.scrape_latency_seconds)
            run.pages[index] = simulator.scrape()[1]
    return run


def _faults(dice: random.Random, seconds: float, *, healthy: bool) -> list[Fault]:
    faults: list[Fault] = []
    at = dice.uniform(150.0, 300.0)
    while at < seconds - 200.0:
        length = dice.uniform(10.0, 90.0)
        if healthy or dice.random() < 0.3:
            rate = dice.choice([0.0, 0.1, 1.5, 2.0, 2.5])  # a burst, or next to nothing
            faults.append(Fault(FaultKind.OVERLOAD, at, length, rate_multiplier=rate))
            at += length + dice.uniform(30.0, 200.0)
            continue
        kind = dice.choice(["overload", "kv_pressure", "leak", "freeze", "crash", "slowdown"])
        length = max(25.0, length) * (2.0 if kind == "leak" else 1.0)
        if kind == "overload":
            most = dice.uniform(8.0, 40.0)
            for step in range(6):
                lasts = length / 12 if step < 5 else length / 2
                begins = at + step * length / 12
                faults.append(Fault(FaultKind.OVERLOAD, begins, lasts, rate_multiplier=most ** ((step + 1) / 6)))
        else:
            faults.append(
                Fault(
                    FaultKind(kind),
                    at,
                    20.0 if kind == "crash" else length,
                    rate_multiplier=dice.uniform(1.0, 4.0) if kind == "kv_pressure" else None,
                    output_multiplier=dice.uniform(3.0, 10.0) if kind == "kv_pressure" else None,
                    withheld_ratio=dice.uniform(0.0, 0.8) if kind == "kv_pressure" else None,
                    bytes_per_second=dice.uniform(2e7, 1e8) if kind == "leak" else None,
                    step_multiplier=dice.uniform(2.0, 8.0) if kind == "slowdown" else None,
                )
            )
        at += length + dice.uniform(120.0, 250.0)
    return faults
