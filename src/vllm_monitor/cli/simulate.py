"""``vllm-monitor simulate``: a vLLM look-alike with faults to inject."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["simulate"]


def simulate(
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes any free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    rate: Annotated[float, typer.Option(help="Background requests per simulated second; 0 for none.")] = 2.0,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND@START+DURATION",
            help="A fault, times in simulated seconds (freeze@20+15). Kinds: freeze, crash, kv_pressure, "
            "overload, leak, slow_start, pause, slowdown. May be given several times.",
        ),
    ] = None,
    speed: Annotated[float, typer.Option(help="Simulated seconds per second.")] = 1.0,
    model: Annotated[str, typer.Option(help="Name of the served model.")] = "simulated",
    dev_mode: Annotated[bool, typer.Option("--dev-mode", help="Serve /pause, /resume, /is_paused.")] = False,
    api_key: Annotated[str | None, typer.Option(help="Bearer token that guards /v1.")] = None,
    track_load: Annotated[bool, typer.Option("--track-load", help="Let /load count requests.")] = False,
    restart_seconds: Annotated[float, typer.Option(help="How long a crashed server stays away.")] = 30.0,
    no_restart: Annotated[bool, typer.Option("--no-restart", help="A crashed server stays away.")] = False,
    client_timeout: Annotated[float, typer.Option(help="Background clients give up after this.")] = 30.0,
    duration: Annotated[float | None, typer.Option(help="End after so many seconds.")] = None,
) -> None:
    """Simulate a vLLM server: real metric names, queueing, KV blocks, and faults to inject.

    Faults can also be injected while it runs: POST /simulator/fault with {"fault": "freeze@0+15"} (the start
    counts from now), DELETE /simulator/fault ends them all.
    """
    from vllm_monitor.simulator.command import make_options, run_simulation

    options = make_options(
        host=host,
        port=port,
        seed=seed,
        rate=rate,
        faults=fault or (),
        speed=speed,
        model=model,
        dev_mode=dev_mode,
        api_key=api_key,
        track_load=track_load,
        restart_seconds=restart_seconds,
        no_restart=no_restart,
        client_timeout=client_timeout,
        duration=duration,
    )
    run_simulation(options, typer.echo)
