"""``python -m vllm_monitor.simulator``: the simulator without the rest of the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vllm_monitor.errors import VLLMMonitorError
from vllm_monitor.simulator.command import make_options, run_simulation


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vllm_monitor.simulator", description="Simulate a vLLM server.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port; 0 for any free one")
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness")
    parser.add_argument("--rate", type=float, default=2.0, help="background requests per second")
    parser.add_argument("--fault", dest="faults", action="append", default=[], metavar="KIND@START+DURATION")
    parser.add_argument("--speed", type=float, default=1.0, help="simulated seconds per second")
    parser.add_argument("--model", default="simulated", help="name of the served model")
    parser.add_argument("--dev-mode", action="store_true", help="serve the development routes")
    parser.add_argument("--api-key", help="bearer token that guards /v1")
    parser.add_argument("--track-load", action="store_true", help="let /load count requests")
    parser.add_argument("--restart-seconds", type=float, default=30.0, help="how long a crash lasts")
    parser.add_argument("--no-restart", action="store_true", help="a crashed server stays away")
    parser.add_argument("--client-timeout", type=float, default=30.0, help="background clients give up")
    parser.add_argument("--duration", type=float, help="end after so many seconds")
    parser.add_argument("--end-with-stdin", action="store_true", help="end when standard input closes")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the simulator; returns the exit code."""
    try:
        options = make_options(**vars(_parser().parse_args(arguments)))
        run_simulation(options, lambda line: print(line, flush=True))
    except VLLMMonitorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
