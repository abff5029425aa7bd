"""What a line of vLLM's log says about the life of the server.

Texts as vLLM 0.24 to 0.32 print them. Lines of a graceful shutdown contain the very words of a crash
(``EngineDeadError`` appears in clean stops), so the order in which signatures are seen matters; that is decided by
the judge, not here.
"""

from __future__ import annotations

import re
from enum import StrEnum

__all__ = ["LogSignature", "classify_line"]


class LogSignature(StrEnum):
    """A kind of line worth knowing."""

    SHUTDOWN = "shutdown"
    WORKER_DIED = "worker_died"
    ENGINE_DIED = "engine_died"
    STARTUP_FAILED = "startup_failed"
    STEP_TIMED_OUT = "step_timed_out"
    WORKER_SILENT = "worker_silent"
    STARTING = "starting"
    READY = "ready"
    OUT_OF_MEMORY = "out_of_memory"


_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_PATTERNS: tuple[tuple[LogSignature, re.Pattern[str]], ...] = (
    (LogSignature.SHUTDOWN, re.compile(r"\[shutdown\] API server: shutdown triggered")),
    (
        LogSignature.WORKER_DIED,
        re.compile(r"Worker proc \S+ died unexpectedly|RayWorkerProc rank=\S+ died unexpectedly"),
    ),
    (
        LogSignature.STARTUP_FAILED,
        re.compile(r"EngineCore failed to start|Engine core initialization failed"),
    ),
    (LogSignature.STEP_TIMED_OUT, re.compile(r"RPC call to \S+ timed out")),
    (
        LogSignature.OUT_OF_MEMORY,
        re.compile(r"torch\.(?:cuda\.)?OutOfMemoryError"),
    ),
    (
        LogSignature.ENGINE_DIED,
        re.compile(
            r"EngineDeadError|EngineCore encountered a fatal error|AsyncLLM output_handler failed"
            r"|engine core exited unexpectedly|EngineCore encountered an issue"
        ),
    ),
    (
        LogSignature.WORKER_SILENT,
        re.compile(r"No available shared memory broadcast block found in \d+ seconds"),
    ),
    (
        LogSignature.STARTING,
        re.compile(r"non-default args:|Initializing a V1 LLM engine|Starting to load model|vLLM API server version"),
    ),
    (LogSignature.READY, re.compile(r"Application startup complete")),
)
# Access lines are nearly the whole log of a busy server: most lines are settled by this one test.
_WORTH_A_LOOK = re.compile(
    r"shutdown|died|failed|timed out|Error|fatal|unexpectedly|issue|shared memory|complete|non-default args"
    r"|Initializing|Starting to load|API server version"
)


def classify_line(line: str) -> LogSignature | None:
    """The kind of a log line, or ``None`` when it tells nothing about the server's life.

    Args:
        line: One line; ANSI colours are ignored.
    """
    if not _WORTH_A_LOOK.search(line):
        return None
    text = _ANSI.sub("", line)
    for signature, pattern in _PATTERNS:
        if pattern.search(text):
            return signature
    return None
