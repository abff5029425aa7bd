"""Whether the limit of open files leaves room for the connections of a busy server."""

from __future__ import annotations

import resource
from collections.abc import Iterator

from vllm_monitor.doctor.findings import Finding, Level
from vllm_monitor.doctor.subject import Subject

__all__ = ["check_descriptors"]

WANTED = 65_535
"""vLLM raises its own limit to this when it starts, all or nothing."""
FEW = 4096
"""Every connection takes a descriptor: 300 clients of an overloaded server were seen to hold 300."""
_CHECK = "descriptors"


def check_descriptors(subject: Subject) -> Iterator[Finding]:
    """Soft and hard limit of this shell, which the server will inherit."""
    soft, hard = subject.machine.descriptor_limits or resource.getrlimit(resource.RLIMIT_NOFILE)
    data = {"soft": soft, "hard": hard}
    said = f"{_number(soft)} open files, at most {_number(hard)}"
    if soft >= WANTED or soft < 0:
        yield Finding(_CHECK, Level.OK, said, data=data)
    elif hard >= WANTED or hard < 0:
        yield Finding(_CHECK, Level.OK, f"{said}: vLLM raises it to {WANTED} by itself", data=data)
    else:
        level = Level.WARNING if soft < FEW else Level.NOTE
        message = f"{said}: vLLM cannot raise it to {WANTED} and stays at {_number(soft)}, connections included"
        higher = f"Run ulimit -n {hard} in the shell that starts it" if hard > soft else "Raise the limit"
        advice = f"{higher} (LimitNOFILE= in a unit, --ulimit nofile= in docker)."
        yield Finding(_CHECK, level, message, advice, data=data)


def _number(limit: int) -> str:
    return "any number" if limit < 0 else str(limit)
