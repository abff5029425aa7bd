"""When this process reached which phase of its start, in unix seconds, as far as one inside can know it.

``process_started`` is when the process began; ``engine_client``, when its stat logger was made, at which time the
engines are up; ``engine_initialized``, when vLLM says so; ``application_built`` and ``application_ready``, when the
HTTP application has its routes, and its state: these two only where the endpoint plugin is loaded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from vllm_monitor_engine.config_facts import kv_facts

__all__ = ["StartupPhases", "process_started_at"]


class StartupPhases:
    """The phases so far, and what became known with them. For the thread in which the server starts.

    Args:
        header: The header of the spool; what is learned goes into it, so that segments that begin later say it too.
        vllm_config: vLLM's configuration, which learns the size of the KV cache late.
        wall: Unix seconds.
    """

    def __init__(
        self, header: dict[str, Any] | None = None, vllm_config: Any = None, wall: Callable[[], float] = time.time
    ) -> None:
        self._header = {} if header is None else header
        self._config = vllm_config
        self._wall = wall
        self._reached: dict[str, float] = {}
        started = process_started_at(self._header.get("process_started"), wall())
        if started is not None:
            self._reach("process_started", started)
        self._reach("engine_client", self._header.get("t") or wall())

    def reach(self, phase: str) -> dict[str, Any]:
        """A phase is reached: all that is known of the start by now, to be told with it. No I/O."""
        self._reach(phase, self._wall())
        facts = kv_facts(self._config)
        self._header.update(facts)
        return {**facts, **self._reached}

    def _reach(self, phase: str, at: float) -> None:
        self._reached[f"{phase}_at"] = self._header[f"{phase}_at"] = round(at, 3)


def process_started_at(ticks_after_boot: Any, now: float) -> float | None:
    """When a process began, in unix seconds, by how long it has run.

    Args:
        ticks_after_boot: When it began, in clock ticks after boot; ``None`` when that is not known.
        now: Unix seconds.
    """
    try:
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks_after_boot / os.sysconf("SC_CLK_TCK")
    except (AttributeError, OSError, TypeError, ValueError, ZeroDivisionError):
        return None
    return now - age if 0 <= age < now else None
