"""What the operator chose, from ``VLLMMON_*`` variables. A guest refuses nothing: what is wrong is passed over.

Variables of ours must not begin with ``VLLM_``: vLLM reports those it does not know, or refuses to start.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["EngineSettings", "default_spool_dir"]

HASH = re.compile("[0-9a-f]{64}")
LIMIT_DIGITS = 9
YES = ("1", "true", "yes", "on")


@dataclass(frozen=True)
class EngineSettings:
    """How the part inside the server works.

    Args:
        enabled: Whether it does anything at all (``VLLMMON_ENABLED``).
        spool_dir: Where what it saw waits for the monitor (``VLLMMON_SPOOL_DIR``).
        spool_limit_bytes: What may wait there of one process; the oldest goes first (``VLLMMON_SPOOL_LIMIT_BYTES``).
        flush_seconds: How often it counts and writes (``VLLMMON_FLUSH_SECONDS``).
        buffer_steps: Steps that may wait in memory between two writes (``VLLMMON_BUFFER_STEPS``).
        stall_seconds: With requests in flight and no step for so long, the engine is stalled
            (``VLLMMON_STALL_SECONDS``).
        target_url: Under which URL the monitor watches this server; only needed where it cannot tell by the process,
            as between containers (``VLLMMON_TARGET_URL``).
        admission_limit: Generation requests that the gate lets in at once, where nobody moves the lever
            (``VLLMMON_ADMISSION_LIMIT``); ``None`` for any number.
        client_limit: Of them, those of one client address (``VLLMMON_CLIENT_LIMIT``).
        refused_prompts: SHA-256 of prompts that the gate never lets in (``VLLMMON_REFUSED_PROMPTS``, with commas).
        complaints: What was wrong with the variables, in words.
    """

    enabled: bool = False
    spool_dir: Path = field(default_factory=lambda: default_spool_dir())  # noqa: PLW0108  # it is defined below
    spool_limit_bytes: int = 64 * 1024 * 1024
    flush_seconds: float = 1.0
    buffer_steps: int = 16_384
    stall_seconds: float = 3.0
    target_url: str = ""
    admission_limit: int | None = None
    client_limit: int | None = None
    refused_prompts: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> EngineSettings:
        """Read the variables; never raises."""
        variables = os.environ if environment is None else environment
        complaints: list[str] = []

        def number(name: str, default: float, least: float, most: float) -> float:
            text = variables.get(name)
            if not text:
                return default
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if least <= value <= most:
                return value
            complaints.append(f"{name}={text!r} is no number from {least:g} to {most:g}; {default:g} is used")
            return default

        def limit(name: str) -> int | None:
            text = variables.get(name, "").strip()
            if not text or (text.isascii() and text.isdecimal() and len(text) <= LIMIT_DIGITS):
                return int(text) if text else None
            complaints.append(f"{name}={text!r} is no whole number from 0; there is no limit")
            return None

        refused = [text.strip().lower() for text in variables.get("VLLMMON_REFUSED_PROMPTS", "").split(",")]
        if any(text and not HASH.fullmatch(text) for text in refused):
            complaints.append("VLLMMON_REFUSED_PROMPTS has something that is no SHA-256 in hexadecimal digits")
        named = variables.get("VLLMMON_SPOOL_DIR", "")
        if named and not Path(named).is_absolute():
            complaints.append(f"VLLMMON_SPOOL_DIR={named!r} is no absolute path; {default_spool_dir()} is used")
            named = ""
        return cls(
            enabled=variables.get("VLLMMON_ENABLED", "").strip().lower() in YES,
            spool_dir=Path(named) if named else default_spool_dir(),
            spool_limit_bytes=int(number("VLLMMON_SPOOL_LIMIT_BYTES", cls.spool_limit_bytes, 65_536, 2**40)),
            flush_seconds=number("VLLMMON_FLUSH_SECONDS", cls.flush_seconds, 0.05, 60.0),
            buffer_steps=int(number("VLLMMON_BUFFER_STEPS", cls.buffer_steps, 16, 10_000_000)),
            stall_seconds=number("VLLMMON_STALL_SECONDS", cls.stall_seconds, 0.5, 3600.0),
            target_url=variables.get("VLLMMON_TARGET_URL", "").strip().rstrip("/"),
            admission_limit=limit("VLLMMON_ADMISSION_LIMIT"),
            client_limit=limit("VLLMMON_CLIENT_LIMIT"),
            refused_prompts=tuple(text for text in refused if HASH.fullmatch(text)),
            complaints=tuple(complaints),
        )


def default_spool_dir(user: Callable[[], int] = os.getuid) -> Path:
    """The folder of this user's servers; the monitor looks there unless it is told of another."""
    return Path(tempfile.gettempdir()) / f"vllm-monitor-{user()}"
