"""How far the start of a server has come: the phases that a vLLM server passes through before its port opens.

The port is closed until the very end, so the log and the process tree are all there is to see. Texts as vLLM 0.24 to
0.32 print them, on CPU and GPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum

__all__ = ["StartupMarks", "StartupPhase", "phase_of_line"]


class StartupPhase(StrEnum):
    """A phase of a start, named after what begins with it; in order."""

    PROCESS_UP = "process_up"
    CONFIG_PARSED = "config_parsed"
    ENGINE_SPAWNED = "engine_spawned"
    WORKERS_SPAWNED = "workers_spawned"
    LOADING_WEIGHTS = "loading_weights"
    ALLOCATING_KV_CACHE = "allocating_kv_cache"
    WARMING_UP = "warming_up"
    ACCEPTING = "accepting"


_RANK = {phase: rank for rank, phase in enumerate(StartupPhase)}
_PATTERNS: tuple[tuple[StartupPhase, re.Pattern[str]], ...] = (
    (
        StartupPhase.CONFIG_PARSED,
        re.compile(
            r"non-default args:|Resolved architecture:|vLLM API server version|\[api_utils\.py:\d+\].* version \d"
        ),
    ),
    (StartupPhase.ENGINE_SPAWNED, re.compile(r"Initializing a V1 LLM engine")),
    (StartupPhase.WORKERS_SPAWNED, re.compile(r"\[parallel_state\.py:\d+\].*world_size=")),
    (StartupPhase.LOADING_WEIGHTS, re.compile(r"Starting to load model")),
    (
        StartupPhase.ALLOCATING_KV_CACHE,
        re.compile(r"Available KV cache memory|GiB for KV cache|KV cache size:"),
    ),
    (StartupPhase.WARMING_UP, re.compile(r"Capturing CUDA graphs|init engine \(profile")),
    (StartupPhase.ACCEPTING, re.compile(r"Application startup complete")),
)
# Most lines of a log are settled by this one test.
_WORTH_A_LOOK = re.compile(
    r"args|architecture|version|Initializing|world_size|load model|KV cache|graphs|engine|complete"
)


def phase_of_line(line: str) -> StartupPhase | None:
    """The phase that begins with a line of the log, or ``None``."""
    if not _WORTH_A_LOOK.search(line):
        return None
    for phase, pattern in _PATTERNS:
        if pattern.search(line):
            return phase
    return None


class StartupMarks:
    """When each phase of the newest start began, as far as it was seen. Not thread-safe: one owner."""

    def __init__(self) -> None:
        self._began_at: dict[StartupPhase, float] = {}

    @property
    def began_at(self) -> Mapping[StartupPhase, float]:
        """Phase to unix seconds, in order; phases that nobody saw are missing."""
        return self._began_at

    def see(self, phase: StartupPhase, at: float) -> None:
        """Note that a phase has begun. Evidence that comes late, of a phase behind which the start is, is ignored."""
        if all(_RANK[known] < _RANK[phase] for known in self._began_at):
            newest = max(self._began_at.values(), default=at)
            self._began_at[phase] = max(at, newest)  # a log is read later than processes are seen

    def clear(self) -> None:
        """Another start has begun."""
        self._began_at.clear()
