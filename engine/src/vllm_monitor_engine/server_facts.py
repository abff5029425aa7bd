"""What a process can say about the server it is in: for the header of its spool, and for the histograms' bounds."""

from __future__ import annotations

import math
import os
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from vllm_monitor_engine.config_facts import asked, config_facts, config_fingerprint, kv_facts

__all__ = [
    "api_server_facts",
    "find_in_flight",
    "in_flight_of",
    "process_start_time",
    "server_bounds",
    "server_header",
]

PREFIX = "vllm:"
FRAMES_SEARCHED = 12
DEFAULT_PORT = 8000


def server_header(vllm_config: Any, engine_indexes: list[int]) -> dict[str, Any]:
    """Which process this is, and what it serves. What cannot be known is left out; never raises.

    Secrets of the command line are not among it.
    """
    version = _text(sys.modules.get("vllm"), "__version__")
    served = getattr(getattr(vllm_config, "model_config", None), "served_model_name", None)
    config = config_facts(vllm_config, version)
    return {
        "pid": os.getpid(),
        "process_started": process_start_time(os.getpid()),
        "engines": list(engine_indexes),
        **api_server_facts(vllm_config),
        "port": _port(sys.argv),
        "vllm_version": version,
        "model": str(served[0] if isinstance(served, list) and served else served or ""),
        "config": config,
        "config_fingerprint": config_fingerprint(config),
        **kv_facts(vllm_config),
    }


def api_server_facts(vllm_config: Any) -> dict[str, int]:
    """Which one of how many API servers of the same engines this is; empty where that is not known. Never raises.

    vLLM gives what a scheduler says to only one of them per step, so that each knows a part of it.
    """
    parallel = asked(vllm_config, "parallel_config")
    rank, count = (asked(parallel, name) for name in ("_api_process_rank", "_api_process_count"))
    known = all(isinstance(one, int) and not isinstance(one, bool) for one in (rank, count))
    return {"api_server": rank, "api_servers": count} if known and 0 <= rank < count else {}


def process_start_time(pid: int) -> int | None:
    """Clock ticks after boot at which a process began; with its number it names it among all since boot."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def server_bounds() -> dict[str, list[float]]:
    """Upper bounds of the server's own histograms, by their names without prefix, from its registry of metrics.

    So ours are counted in the same buckets as its own, whatever its version and its options. Empty where there is no
    such registry.
    """
    module = sys.modules.get("prometheus_client")
    if module is None:
        return {}
    found: dict[str, list[float]] = {}
    for family in module.REGISTRY.collect():
        if family.type != "histogram" or not family.name.startswith(PREFIX):
            continue
        bounds = {float(sample.labels["le"]) for sample in family.samples if "le" in sample.labels}
        if bounds:
            found[family.name[len(PREFIX) :]] = sorted(bound for bound in bounds if math.isfinite(bound))
    return found


def find_in_flight(wall: Callable[[], float]) -> Callable[[], tuple[int, float | None] | None]:
    """A way to ask for the requests in flight of the engine client that is being made by our callers.

    A stat logger is not told of its client, but is made by it: among the callers of its constructor one has the table
    of requests. Only so can a stall be seen that begins while nothing runs. Where none is found, the answer is always
    ``None``.
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  # documented, and the only way to one's caller
    for _ in range(FRAMES_SEARCHED):
        if frame is None:
            break
        owner = frame.f_locals.get("self")
        processor = getattr(owner, "output_processor", None)
        if isinstance(getattr(processor, "request_states", None), dict):
            return in_flight_of(processor, wall)
        frame = frame.f_back
    return lambda: None


def in_flight_of(output_processor: Any, wall: Callable[[], float]) -> Callable[[], tuple[int, float | None] | None]:
    """A way to ask an output processor for the requests in flight, and the age of the oldest in seconds."""
    processor = weakref.ref(output_processor)

    def in_flight() -> tuple[int, float | None] | None:
        alive = processor()
        if alive is None:
            return None
        for _ in range(3):  # the loop may change it meanwhile
            try:
                states = list(alive.request_states.values())
            except RuntimeError:
                continue
            arrivals = [getattr(getattr(one, "stats", None), "arrival_time", None) for one in states]
            known = [at for at in arrivals if isinstance(at, float) and at > 0]
            return len(states), max(0.0, wall() - min(known)) if known else None
        return None

    return in_flight


def _port(arguments: list[str]) -> int:
    """The port that a command line serves on."""
    port = DEFAULT_PORT
    for place, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--port":
            value = value or (arguments[place + 1] if place + 1 < len(arguments) else "")
            port = int(value) if value.isdecimal() else port
    return port


def _text(source: Any, attribute: str) -> str | None:
    value = getattr(source, attribute, None)
    return value if isinstance(value, str) else None
