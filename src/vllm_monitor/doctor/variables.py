"""Variables that nobody will read, or that will be read otherwise than they were meant."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from vllm_monitor.core import MonitorConfig
from vllm_monitor.doctor.findings import Finding, Level
from vllm_monitor.doctor.subject import Subject
from vllm_monitor.errors import ConfigurationError

__all__ = ["ENGINE_LIMITS", "ENGINE_NUMBERS", "OUR_VARIABLES", "check_variables"]

ENGINE_NUMBERS = {
    "VLLMMON_SPOOL_LIMIT_BYTES": (65_536.0, float(2**40)),
    "VLLMMON_FLUSH_SECONDS": (0.05, 60.0),
    "VLLMMON_BUFFER_STEPS": (16.0, 10_000_000.0),
    "VLLMMON_STALL_SECONDS": (0.5, 3600.0),
}
"""Numbers of the part inside the server, with their least and most; outside of these it takes its own."""
ENGINE_LIMITS = ("VLLMMON_ADMISSION_LIMIT", "VLLMMON_CLIENT_LIMIT")
"""Whole numbers of the gate; with anything else there is no limit."""
_MOST_DIGITS = 9
_REFUSED = "VLLMMON_REFUSED_PROMPTS"
_HASH = re.compile("[0-9a-f]{64}")
_SWITCH = "VLLMMON_ENABLED"
_SWITCH_VALUES = frozenset({"", "0", "1", "true", "false", "yes", "no", "on", "off"})
OUR_VARIABLES = frozenset(
    {
        *(f"VLLMMON_{name.upper()}" for name in MonitorConfig.model_fields),
        *ENGINE_NUMBERS,
        *ENGINE_LIMITS,
        _REFUSED,
        _SWITCH,
        "VLLMMON_STORAGE_DIR",
        "VLLMMON_TARGET_URL",
        "VLLMMON_TRUST_FILE",
    }
)
_CHECK = "variables"


def check_variables(subject: Subject) -> Iterator[Finding]:
    """Names that vLLM or we do not know, and values of ours that make no sense; values are not shown."""
    findings = [*_of_vllm(subject), *_unknown_ours(subject), *_malformed(subject)]
    yield from findings or [Finding(_CHECK, Level.OK, "every VLLM_ and VLLMMON_ variable is known")]


def _of_vllm(subject: Subject) -> Iterator[Finding]:
    names = sorted(name for name in subject.environment if name.startswith("VLLM_"))
    known = subject.installation.known_variables
    if known is None:
        if names:
            message = f"{', '.join(names)}: whether vLLM knows these could not be looked at"
            yield Finding(_CHECK, Level.UNKNOWN, message, "Name the interpreter of vLLM's environment with --python.")
        return
    for name in names:
        if name not in known:
            version = subject.installation.version
            message = f"vLLM {version} does not know {name}{_meant(name, known)}: it has no effect"
            advice = "Correct or unset it; where vLLM's environment is checked strictly it refuses to start."
            yield Finding(_CHECK, Level.WARNING, message, advice, data={"variable": name})


def _unknown_ours(subject: Subject) -> Iterator[Finding]:
    for name in sorted(subject.environment):
        if name.startswith("VLLMMON_") and name not in OUR_VARIABLES:
            message = f"nothing of ours knows {name}{_meant(name, OUR_VARIABLES)}: it has no effect"
            yield Finding(_CHECK, Level.WARNING, message, "Correct or unset it.", data={"variable": name})


def _malformed(subject: Subject) -> Iterator[Finding]:
    given = subject.environment
    wrong = [
        (name, f"a number from {least:g} to {most:g}")
        for name, (least, most) in ENGINE_NUMBERS.items()
        if given.get(name) and not least <= _number(given[name]) <= most
    ]
    wrong += [
        (name, "a whole number from 0, of at most nine digits")
        for name in ENGINE_LIMITS
        if not _is_limit(given.get(name, ""))
    ]
    if any(one and not _HASH.fullmatch(one) for one in map(_normal, given.get(_REFUSED, "").split(","))):
        wrong.append((_REFUSED, "SHA-256 of prompts in hexadecimal digits, with commas between them"))
    if given.get(_SWITCH, "").strip().lower() not in _SWITCH_VALUES:
        wrong.append((_SWITCH, "a switch: 1, true, yes or on is on, and this is off"))
    if given.get("VLLMMON_SPOOL_DIR") and not Path(given["VLLMMON_SPOOL_DIR"]).is_absolute():
        wrong.append(("VLLMMON_SPOOL_DIR", "an absolute path"))
    settings = {name: given[f"VLLMMON_{name.upper()}"] for name in MonitorConfig.model_fields if _is_given(name, given)}
    try:
        MonitorConfig(**settings)
    except ConfigurationError as error:  # names what is wrong, never the value
        yield Finding(_CHECK, Level.WARNING, f"VLLMMON_ variables of the monitor: {error.message}", error.hint)
    for name, expected in wrong:
        message = f"the value of {name} is passed over inside the server: it must be {expected}"
        yield Finding(_CHECK, Level.WARNING, message, "Correct or unset it.", data={"variable": name})


def _is_given(setting: str, environment: Mapping[str, str]) -> bool:
    return f"VLLMMON_{setting.upper()}" in environment


def _is_limit(text: str) -> bool:
    text = text.strip()
    return not text or (text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS)


def _normal(text: str) -> str:
    return text.strip().lower()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
    return f" (is {close[0]} meant?)" if close else ""
