"""Far too many requests for a real server, with and without the adaptive admission limit.

``python benchmarks/overload.py [--quick] [--json]``; see README.md. One server of the tiny model on one half of the
cores, the same arrivals twice, each on a server of its own: first as it is, then with ``adaptive`` set through the
route of the part inside it. Clients stream, and give up after thirty seconds, as users do. Good is an answer that has
come to its regular end and within the objectives that a monitor has unless it is told of others: for the time to the
first token, and for the mean time between two.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

sys.path.append(str(Path(__file__).parents[1] / "tools"))

import vllm_env  # found by the line above
from vllm_monitor.core import MonitorConfig
from vllm_server import VllmServer  # likewise

RATE = 60.0
CLIENT_LIMIT_SECONDS = 30.0
DRAIN_SECONDS = 30.0
FEW_PLACES = ("--max-num-seqs", "4")


async def overload(server: VllmServer, seconds: float, seed: int) -> Counter[str]:
    """Open-loop Poisson arrivals; what became of them: ``answered``, ``refused``, ``timed_out`` or ``failed``.

    ``good`` are those of the answered that were within the objectives.
    """
    dice, outcomes = random.Random(seed), Counter[str]()
    limit = aiohttp.ClientTimeout(total=CLIENT_LIMIT_SECONDS)

    async def ask(session: aiohttp.ClientSession, number: int, tokens: int) -> None:
        body = {"model": server.model, "prompt": f"{number} please", "max_tokens": tokens, "ignore_eos": True}
        began, times = time.perf_counter(), []
        try:
            async with session.post(f"{server.url}/v1/completions", json={**body, "stream": True}) as answer:
                async for line in answer.content:
                    if line.startswith(b"data: {") and b'"error"' not in line:
                        times.append(time.perf_counter())
                    elif line.startswith(b"data: [DONE]") and len(times) == tokens:
                        outcomes["answered"] += 1
                        outcomes["good"] += is_good(began, times)
                        return
                outcomes["refused" if answer.status == 503 else "failed"] += 1
        except TimeoutError:
            outcomes["timed_out"] += 1
        except aiohttp.ClientError:
            outcomes["failed"] += 1

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=limit) as session:
        tasks, at, began, number = [], 0.0, time.perf_counter(), 0
        while at < seconds:
            await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
            tasks.append(asyncio.create_task(ask(session, number, dice.randint(60, 140))))
            at += dice.expovariate(RATE)
            number += 1
        await asyncio.gather(*tasks)
    return outcomes


def is_good(began: float, times: list[float]) -> bool:
    """Whether an answer whose tokens came at these times was within the objectives."""
    objectives = MonitorConfig()
    between = (times[-1] - times[0]) / max(1, len(times) - 1)
    is_soon = times[0] - began <= objectives.ttft_objective_seconds
    return is_soon and between <= objectives.inter_token_objective_seconds


def lever(server: VllmServer, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask the part inside."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.url}/v1/vllm-monitor/{path}", data)  # noqa: S310  # our own http:// URL
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310  # likewise
        found: dict[str, Any] = json.load(answer)
    return found


def drained(server: VllmServer) -> float | None:
    """Seconds until nothing is in flight; ``None`` when that takes too long."""
    began = time.perf_counter()
    while time.perf_counter() - began < DRAIN_SECONDS:
        if lever(server, "status")["in_flight"] == 0:
            return time.perf_counter() - began
        time.sleep(0.2)
    return None


def measure(seconds: float, folder: Path) -> Iterator[dict[str, Any]]:
    """One row per figure."""
    env, plugin = vllm_env.ensure(), vllm_env.ensure_plugin()
    cores = sorted(os.sched_getaffinity(0))
    half = max(1, len(cores) // 2)
    good = {}
    for is_limited in (False, True):
        with VllmServer(
            env,
            folder / f"server-{is_limited}.log",
            development_routes=False,
            extra_args=FEW_PLACES,
            plugin=plugin,
            variables={
                "VLLMMON_ENABLED": "1",
                "VLLMMON_SPOOL_DIR": str(folder / f"spool-{is_limited}"),
                "VLLM_PLUGINS": "vllm_monitor,vllm_monitor_levers",
            },
            cpus=cores[-half:],
        ) as server:
            os.sched_setaffinity(0, cores[:half])
            if is_limited:
                lever(server, "admission-limit", {"adaptive": True, "limit": 8, "for_seconds": 600})
            outcomes = asyncio.run(overload(server, seconds, seed=7))
            rest = drained(server)
            os.sched_setaffinity(0, cores)
        good[is_limited] = outcomes["good"] / seconds
        peer = None if is_limited else "no limit"
        for name in ("good", "answered", "refused", "timed_out", "failed"):
            yield {"figure": f"engine.overload.{name}", "value": outcomes[name], "unit": "requests", "peer": peer}
        unit = "s after the last answer, until nothing is in flight"
        yield {"figure": "engine.overload.drain_seconds", "value": rest, "unit": unit, "peer": peer}
    ratio = good[True] / max(good[False], 1.0 / seconds)
    yield {
        "figure": "engine.overload_goodput_ratio",
        "value": ratio,
        "unit": "good answers, with / without",
        "peer": None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="half a minute instead of one")
    parser.add_argument("--json", action="store_true", help="one JSON object per figure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vllm-monitor-bench-") as folder:
        for row in measure(30.0 if options.quick else 60.0, Path(folder)):
            if options.json:
                print(json.dumps(row), flush=True)
            else:
                print(f"{row['figure']:32} {row['value']!s:>22}  {row['unit']}  {row['peer'] or ''}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
