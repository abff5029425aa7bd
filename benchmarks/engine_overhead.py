"""What the part inside a real server costs: its CPU, and the throughput with it and without.

``python benchmarks/engine_overhead.py [--quick] [--json]``; see README.md. Two servers of the tiny model, one with the
part inside and one without, stand beside each other on one half of the cores; a closed loop of clients drives them in
turn, pair by pair, in a random order within each pair.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

sys.path.append(str(Path(__file__).parents[1] / "tools"))

import vllm_env  # found by the line above
from vllm_server import VllmServer  # likewise

CLIENTS = 16
MAX_TOKENS = 64
# Two-sided 97.5 % points of Student's t, by degrees of freedom.
T_POINTS = {3: 3.182, 4: 2.776, 5: 2.571, 7: 2.365, 9: 2.262, 11: 2.201, 14: 2.145, 19: 2.093, 24: 2.064, 29: 2.045}


@dataclass(frozen=True, slots=True)
class Plan:
    """How long it takes."""

    pairs: int
    seconds: float


async def drive(server: VllmServer, seconds: float) -> float:
    """Tokens per second of a closed loop of clients."""
    ends_at = time.perf_counter() + seconds
    tokens = 0

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        nonlocal tokens
        body = {"model": server.model, "max_tokens": MAX_TOKENS, "ignore_eos": True}
        while time.perf_counter() < ends_at:
            body["prompt"] = f"{number} {time.perf_counter()}"
            async with session.post(f"{server.url}/v1/completions", json=body) as answer:
                found = await answer.json()
            if time.perf_counter() <= ends_at:
                tokens += found["usage"]["completion_tokens"]

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session, number) for number in range(CLIENTS)))
    return tokens / seconds


def newest_totals(spool: Path) -> dict[str, Any]:
    """The newest line of totals of the only spool there."""
    lines: list[dict[str, Any]] = []
    for file in sorted(spool.glob("*.spool")):
        lines += [json.loads(line) for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return [line for line in lines if line["kind"] == "totals"][-1]


def cpu_seconds(server: VllmServer) -> float:
    """CPU of the API process so far."""
    times = psutil.Process(server.pid).cpu_times()
    return times.user + times.system


def figure(name: str, value: float, unit: str) -> dict[str, Any]:
    """A line of the report."""
    return {"figure": name, "value": value, "unit": unit, "peer": None}


def measure(plan: Plan, folder: Path) -> Iterator[dict[str, Any]]:
    """One row per figure."""
    env = vllm_env.ensure()
    cores = sorted(os.sched_getaffinity(0))
    half = max(1, len(cores) // 2)
    spool = folder / "spool"
    dice = random.Random(1)
    with ExitStack() as stack:
        without = stack.enter_context(VllmServer(env, folder / "without.log", cpus=cores[-half:]))
        inside = stack.enter_context(
            VllmServer(
                env,
                folder / "with.log",
                plugin=vllm_env.ensure_plugin(),
                variables={"VLLMMON_ENABLED": "1", "VLLMMON_SPOOL_DIR": str(spool)},
                cpus=cores[-half:],
            )
        )
        os.sched_setaffinity(0, cores[:half])
        for server in (without, inside):
            asyncio.run(drive(server, 3.0))  # warm
        ratios, share, before = [], [], newest_totals(spool)["cpu_seconds"]
        for _ in range(plan.pairs):
            rates = {}
            for server in dice.sample([without, inside], 2):
                began = cpu_seconds(server)
                rates[server is inside] = asyncio.run(drive(server, plan.seconds))
                if server is inside:
                    share.append(cpu_seconds(server) - began)
            ratios.append(math.log(rates[True] / rates[False]))
        time.sleep(2.0)
        totals = newest_totals(spool)
        os.sched_setaffinity(0, cores)
    mean, spread = statistics.mean(ratios), statistics.stdev(ratios) / math.sqrt(len(ratios))
    reach = T_POINTS[max(free for free in T_POINTS if free <= len(ratios) - 1)] * spread
    ours = totals["cpu_seconds"] - before
    note = f"{plan.pairs} pairs of {plan.seconds:g} s"
    yield figure("engine.cpu_share", ours / sum(share), f"of the API process's CPU, {note}")
    yield figure("engine.record_us", 1e6 * totals["record_seconds"], "us, median, on a live server")
    yield figure("engine.throughput_ratio", math.exp(mean), f"with / without, {note}")
    yield figure("engine.throughput_ratio_low", math.exp(mean - reach), "95 % interval")
    yield figure("engine.throughput_ratio_high", math.exp(mean + reach), "95 % interval")
    yield figure("engine.lost_steps", totals["lost_steps"], "steps")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter pairs")
    parser.add_argument("--json", action="store_true", help="one JSON object per figure")
    options = parser.parse_args()
    plan = Plan(5, 5.0) if options.quick else Plan(30, 8.0)
    with tempfile.TemporaryDirectory(prefix="vllm-monitor-bench-") as folder:
        for row in measure(plan, Path(folder)):
            if options.json:
                print(json.dumps(row), flush=True)
            else:
                print(f"{row['figure']:32} {row['value']:10.4f}  {row['unit']}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
