"""Makes calls of our part inside a server fail, in the server itself, while a file says so.

Python imports a module of this name at its start when its folder is on the path. Standard library only.

``VLLMMON_TEST_FAULT_FILE`` names the file; in it stands ``MODULE:NAME KIND``, with a kind of ``raise``, ``memory``,
``disk`` or ``hang`` (until the file says something else). ``VLLMMON_TEST_START_FAULTS=1`` makes all that runs at the
start raise instead. Each call that failed is a line in ``VLLMMON_TEST_FAULT_FILE`` with ``.met`` at its end.
"""

from __future__ import annotations

import errno
import functools
import importlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

POINTS = {
    "recorder:Recorder.record": "loop",
    "recorder:Recorder.note": "loop",
    "recorder:Recorder.load": "loop",
    "rejections:Rejections.count": "loop",
    "middleware:GateState.why_refused": "loop",
    "middleware:_client_of": "loop",
    "middleware:_give_id": "loop",
    "middleware:GateState.refuses_prompts": "loop",
    "middleware:prompt_hashes": "loop",
    "admission:AimdLimit.look": "loop",
    "levers:Levers.requests": "loop",
    "levers:Levers.status": "loop",
    "engine_totals:EngineTotals.add": "thread",
    "engine_totals:EngineTotals.as_json": "thread",
    "histogram:Histogram.observe": "thread",
    "heartbeat:Heartbeat.look": "thread",
    "rejections:Rejections.as_json": "thread",
    "recorder:request_lines": "thread",
    "recorder:Recorder._flying": "thread",
    "recorder:Recorder._keep": "thread",
    "recorder:Recorder._write": "thread",
    "recorder:Recorder._count": "thread",
    "spool:Spool.write": "thread",
    "spool:os.write": "thread",
    "step_buffer:StepBuffer.take": "thread",
}
START_POINTS = (
    "host_process:server_header",
    "host_process:spool_name",
    "endpoint_plugin:Levers",
    "endpoint_plugin:gate_state",
    "recorder:Recorder.note",
    "startup_phases:StartupPhases.reach",
)


def fail(kind: str, point: str, still: Callable[[], bool]) -> None:
    if kind == "hang":
        while still():
            time.sleep(0.05)
        return
    raise {
        "raise": RuntimeError(f"injected into {point}"),
        "memory": MemoryError(),
        "disk": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    }[kind]


def install(point: str, fault_of: Callable[[], str], met: Callable[[str], None]) -> None:
    """Put a call in the place of a function or method that fails while it should."""
    module_name, _, path = point.partition(":")
    owner: Any = importlib.import_module(f"vllm_monitor_engine.{module_name}")
    *parents, name = path.split(".")
    if parents == ["os"]:  # not everybody's
        owner.os = type("Os", (), {**vars(os), name: staticmethod(getattr(os, name))})
        owner = owner.os
        original = getattr(os, name)
    else:
        for parent in parents:
            owner = getattr(owner, parent)
        original = getattr(owner, name)

    @functools.wraps(original)
    def call(*arguments: Any, **named: Any) -> Any:
        kind = fault_of()
        if kind:
            met(f"{point} {kind}")
            fail(kind, point, lambda: fault_of() == kind)
        return original(*arguments, **named)

    setattr(owner, name, staticmethod(call) if parents == ["os"] else call)


def main() -> None:
    file = os.environ.get("VLLMMON_TEST_FAULT_FILE")
    if not file or "multiprocessing" in " ".join(sys.argv):
        return
    wanted = Path(file)

    def met(text: str) -> None:
        with Path(f"{file}.met").open("a") as log:
            log.write(f"{text}\n")

    def fault_of(point: str) -> str:
        try:
            named, _, kind = wanted.read_text().partition(" ")
        except OSError:
            return ""
        return kind if named == point else ""

    if os.environ.get("VLLMMON_TEST_START_FAULTS") == "1":
        for point in START_POINTS:
            install(point, lambda: "raise", met)
        return
    for point in POINTS:
        install(point, functools.partial(fault_of, point), met)


main()
