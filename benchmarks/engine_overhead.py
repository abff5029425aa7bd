"""What the part inside a real server costs: its CPU, and the throughput with it and without.

``python benchmarks/engine_overhead.py [--quick] [--json]``; see README.md. Two servers of the tiny model, one with the
part inside and one without, stand beside each other on one half of the cores; a closed loop of streaming clients, as
users' are, drives them in turn, pair by pair, in a random order within each pair. Clients that take their answer whole
cost the API process so much less that the share of the part inside is larger: it is told beside the other.
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
TELLING_SECONDS = 1.5
# Two-sided 97.5 % points of Student's t, by degrees of freedom.
T_POINTS = {3: 3.182, 4: 2.776, 5: 2.571, 7: 2.365, 9: 2.262, 11: 2.201, 14: 2.145, 19: 2.093, 24: 2.064, 29: 2.045}


@dataclass(frozen=True, slots=True)
class Plan:
    """How long it takes."""

    pairs: int
    seconds: float


async def drive(server: VllmServer, seconds: float, *, stream: bool = True) -> float:
    """Tokens per second of a closed loop of clients."""
    ends_at = time.perf_counter() + seconds
    tokens = 0

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        nonlocal tokens
        body = {"model": server.model, "max_tokens": MAX_TOKENS, "ignore_eos": True, "stream": stream}
        while time.perf_counter() < ends_at:
            body["prompt"] = f"{number} {time.perf_counter()}"
            async with session.post(f"{server.url}/v1/completions", json=body) as answer:
                whole = await answer.read()
            is_whole = answer.status == 200 and (not stream or whole.rstrip().endswith(b"[DONE]"))
            if not is_whole:
                msg = f"a request failed: {answer.status} {whole[-200:]!r}"
                raise RuntimeError(msg)
            if time.perf_counter() <= ends_at:
                tokens += MAX_TOKENS

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session, number) for number in range(CLIENTS)))
    return tokens / seconds


@dataclass(slots=True)
class Share:
    """CPU of the part inside, and of the whole API process, while it is driven."""

    spool: Path
    ours: float = 0.0
    whole: float = 0.0

    def drive(self, server: VllmServer, seconds: float, *, stream: bool = True) -> float:
        """Drive the server with the part inside; returns tokens per second."""
        ours, whole = newest_totals(self.spool)["cpu_seconds"], cpu_seconds(server)
        rate = asyncio.run(drive(server, seconds, stream=stream))
        self.whole += cpu_seconds(server) - whole
        time.sleep(TELLING_SECONDS)  # until it has counted, and told, the last of it
        self.ours += newest_totals(self.spool)["cpu_seconds"] - ours
        return rate

    @property
    def ratio(self) -> float:
        """Ours of the whole."""
        return self.ours / self.whole


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
        ratios, streamed, unstreamed = [], Share(spool), Share(spool)
        for _ in range(plan.pairs):
            rates = {}
            for server in dice.sample([without, inside], 2):
                if server is inside:
                    rates[True] = streamed.drive(server, plan.seconds)
                else:
                    rates[False] = asyncio.run(drive(server, plan.seconds))
                    time.sleep(TELLING_SECONDS)
            ratios.append(math.log(rates[True] / rates[False]))
        unstreamed.drive(inside, 2 * plan.seconds, stream=False)
        totals = newest_totals(spool)
        os.sched_setaffinity(0, cores)
    mean, spread = statistics.mean(ratios), statistics.stdev(ratios) / math.sqrt(len(ratios))
    reach = T_POINTS[max(free for free in T_POINTS if free <= len(ratios) - 1)] * spread
    note = f"{plan.pairs} pairs of {plan.seconds:g} s"
    yield figure("engine.cpu_share", streamed.ratio, f"of the API process's CPU, streaming clients, {note}")
    yield figure("engine.cpu_share.unstreamed", unstreamed.ratio, "the same for clients that take their answer whole")
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
