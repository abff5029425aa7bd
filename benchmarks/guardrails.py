"""Two hundred guardrails on one server: CPU of a tick, and what they add to the rest of it.

``python benchmarks/guardrails.py [--quick] [--json]``
"""

from __future__ import annotations

import argparse
import json
import time
from array import array
from collections.abc import Sequence
from dataclasses import replace

from vllm_monitor.collectors import PageParser
from vllm_monitor.core.pipeline import TargetPipeline
from vllm_monitor.guardrails import GuardrailPolicy, Guardrails, builtin_policies
from vllm_monitor.lifecycle_tracker import LifecycleTracker
from vllm_monitor.records import Layout
from vllm_monitor.records.observation import PageObservation
from vllm_monitor.simulator import Simulator

TARGET = "http://bench"
POLICIES = 200
BEGAN = 1e9
ROUNDS = 5

Page = tuple[Layout, "array[float]"]


def pages(count: int) -> list[Page]:
    """Consecutive pages of a simulated server under load, parsed."""
    simulator = Simulator(seed=1)
    simulator.advance(60.0)
    parser = PageParser()
    found = []
    for _ in range(count):
        simulator.advance(1.0)
        page = parser.parse(simulator.page().encode())
        assert page.layout is not None
        found.append((page.layout, page.values))
    return found


def policies(count: int) -> list[GuardrailPolicy]:
    """Those of the package, and again and again the same conditions under other names."""
    shipped = list(builtin_policies())
    found = []
    for number in range(count):
        policy = shipped[number % len(shipped)]
        found.append(replace(policy, name=f"{policy.name}_{number}", metadata={**policy.metadata, "inhibited_by": []}))
    return found


def tick_seconds(seen: Sequence[Page], guardrails: Guardrails | None) -> float:
    """CPU seconds of one tick, from parsed page to verdict and alerts."""
    pipeline = TargetPipeline(TARGET, tracker=LifecycleTracker(), guardrails=guardrails)
    observations = [
        PageObservation(
            target=TARGET, timestamp=BEGAN + second, latency_seconds=0.002, layout=layout, values=values, status=200
        )
        for second, (layout, values) in enumerate(seen)
    ]
    began = time.process_time()
    for second, observation in enumerate(observations):
        pipeline.step(BEGAN + second + 0.1, [observation])
    return (time.process_time() - began) / len(seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer ticks")
    parser.add_argument("--json", action="store_true", help="one line of JSON per figure")
    options = parser.parse_args()
    seen = pages(100 if options.quick else 600)
    without = min(tick_seconds(seen, None) for _ in range(ROUNDS))
    many = policies(POLICIES)
    shipped, two_hundred = (
        min(tick_seconds(seen, Guardrails(built_in=built_in)) for _ in range(ROUNDS))
        for built_in in (list(builtin_policies()), many)
    )
    for name, seconds, text in (
        ("guardrails.tick_ms", two_hundred - without, f"ms CPU, {POLICIES} guardrails, {len(seen[0][1])} series"),
        ("guardrails.built_in_tick_ms", shipped - without, "ms CPU, those of the package"),
        ("guardrails.without_tick_ms", without, "ms CPU, the same tick without guardrails"),
    ):
        line = {"figure": name, "value": seconds * 1e3, "unit": text, "peer": None}
        print(json.dumps(line) if options.json else f"{name:30} {seconds * 1e3:10.4g} {text}", flush=True)


if __name__ == "__main__":
    main()
