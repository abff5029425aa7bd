"""``vllm-monitor demo``: a simulated server, the monitor and a few faults, and a report of what was seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_monitor.cli.options import JsonOption, TemporaryUnlessGivenOption, stop_on_signals

if TYPE_CHECKING:
    from vllm_monitor.core import Tick, VLLMMonitor
    from vllm_monitor.simulator import Fault

__all__ = ["demo"]

LEAST_SECONDS = 30.0
SEEN_WITHIN_SECONDS = 5.0


@dataclass(slots=True)
class _Plan:
    """A fault and the conditions by which it may be recognised."""

    fault: Fault
    title: str
    conditions: frozenset[str]
    seen_as: str = ""
    seen_after_seconds: float | None = None


def demo(
    duration: Annotated[float, typer.Option("--duration", help="How many seconds to run.")] = 60.0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the simulated load.")] = 0,
    storage_dir: TemporaryUnlessGivenOption = None,
    json: JsonOption = False,
) -> None:
    """Run a simulated vLLM server with faults, watch it, and report what was seen and stored."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from vllm_monitor.clock import SystemClock
    from vllm_monitor.core import MonitorConfig, VLLMMonitor
    from vllm_monitor.errors import ConfigurationError
    from vllm_monitor.persistence import PersistenceConfig
    from vllm_monitor.simulator import SimulatorProcess

    if not duration >= LEAST_SECONDS:
        raise ConfigurationError(
            f"--duration {duration:g} is too short for a fault to show", hint=f"give at least {LEAST_SECONDS:g} seconds"
        )
    plans = _plan(duration)
    ticks: list[Tick] = []
    with TemporaryDirectory(prefix="vllm-monitor-demo-") as folder:
        monitor = VLLMMonitor(
            MonitorConfig(targets=(), interval_seconds=1.0),
            persistence_config=PersistenceConfig(storage_dir=storage_dir or Path(folder) / "store"),
        )
        try:
            simulator = SimulatorProcess(seed=seed, faults=[plan.fault for plan in plans], rate=3.0)
            began = SystemClock().now()
            with simulator:
                monitor.add_target(simulator.url)
                monitor.add_listener(ticks.append)
                if not json:
                    _announce(simulator.url, plans, duration)
                _run(monitor, duration, quiet=json)
            _recognise(plans, ticks, began)
            report = _report(plans, ticks, monitor, duration, kept=storage_dir is not None)
        finally:
            monitor.close()
    _print(report, as_json=json)


def _plan(duration: float) -> list[_Plan]:
    from vllm_monitor.simulator import parse_fault

    # The overload comes first: nothing is predicted in the first seconds, nor while a server recovers from a freeze.
    overload, freeze, crash = 0.47 * duration, 0.7 * duration, 0.9 * duration
    return [
        _Plan(
            parse_fault(f"overload@{overload:g}+{0.14 * duration:g},rate_multiplier=14"),
            "more requests than it can serve",
            frozenset({"saturated"}),
        ),
        _Plan(
            parse_fault(f"freeze@{freeze:g}+{0.17 * duration:g}"),
            "engine frozen (its /health says 200 all along)",
            frozenset({"stalled"}),
        ),
        _Plan(
            parse_fault(f"crash@{crash:g},restart=0"),
            "engine killed",
            frozenset({"engine_dead", "api_dead"}),
        ),
    ]


def _announce(url: str, plans: list[_Plan], duration: float) -> None:
    from rich.console import Console

    console = Console(stderr=True)
    console.print(f"A simulated vLLM server runs at {url} for {duration:g} s, with these faults:")
    for plan in plans:
        console.print(f"  at {plan.fault.start_seconds:5.1f} s  {plan.title}")


def _run(monitor: VLLMMonitor, duration: float, *, quiet: bool) -> None:
    if quiet:
        with stop_on_signals(monitor.request_stop):
            monitor.run(duration)
        return
    from vllm_monitor.cli.watch import show

    show(monitor, duration)


def _recognise(plans: list[_Plan], ticks: list[Tick], began: float) -> None:
    for plan in plans:
        start = began + plan.fault.start_seconds
        end = start + (plan.fault.duration_seconds or 0.0) + SEEN_WITHIN_SECONDS
        for tick in ticks:
            snapshot = tick.snapshot
            if start <= snapshot.timestamp <= max(end, start + 30.0) and snapshot.condition.value in plan.conditions:
                plan.seen_as = snapshot.condition.value
                plan.seen_after_seconds = snapshot.timestamp - start
                break


def _report(
    plans: list[_Plan], ticks: list[Tick], monitor: VLLMMonitor, duration: float, *, kept: bool
) -> dict[str, Any]:
    statistics: dict[str, Any] = {}
    predictions = [one for tick in ticks for one in tick.predictions]
    leads = {
        one.prediction.prediction_id: round(one.lead_seconds, 1)
        for tick in ticks
        for one in tick.settled
        if one.lead_seconds is not None
    }
    if monitor.persistence_manager is not None:
        monitor.persistence_manager.flush_all()
        statistics = monitor.persistence_manager.get_statistics()
    return {
        "duration_seconds": duration,
        "ticks": len(ticks),
        "faults": [
            {
                "fault": plan.fault.kind.value,
                "what": plan.title,
                "seen_as": plan.seen_as or None,
                "seen_after_seconds": None if plan.seen_after_seconds is None else round(plan.seen_after_seconds, 1),
            }
            for plan in plans
        ],
        "health_was_200_while_stalled": any(
            tick.snapshot.condition.value == "stalled" and tick.snapshot.health_status == 200 for tick in ticks
        ),
        "predicted": [
            {
                "failure_type": one.failure_type,
                "probability": round(one.probability, 2),
                "lead_seconds": leads.get(one.prediction_id),
            }
            for one in predictions
        ],
        "is_kept": kept,
        "samples_stored": statistics.get("counts", {}).get("metrics", 0),
        "bytes_on_disk": statistics.get("bytes", 0),
    }


def _print(report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        from json import dumps

        typer.echo(dumps(report))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("fault", "what happened", "seen as", "after", title="What the monitor saw")
    for fault in report["faults"]:
        seconds = fault["seen_after_seconds"]
        table.add_row(
            fault["fault"],
            fault["what"],
            fault["seen_as"] or "not seen",
            "-" if seconds is None else f"{seconds:.1f} s",
        )
    console = Console()
    console.print(table)
    if report["health_was_200_while_stalled"]:
        console.print("While the engine was stalled, /health went on saying 200.")
    for one in report["predicted"]:
        lead = one["lead_seconds"]
        ahead = "it did not come to it" if lead is None else f"{lead:.0f} s before it happened"
        console.print(f"Predicted: {one['failure_type']} ({one['probability']:.0%}), {ahead}.")
    console.print(
        f"{report['ticks']} ticks, {report['samples_stored']} samples stored in {report['bytes_on_disk']} bytes."
    )
    if not report["is_kept"]:
        console.print("The store of this demo is gone; --storage-dir keeps it, for events, report and all the rest.")
