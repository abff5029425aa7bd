"""Whether the command does anything that is known to go wrong."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_monitor.doctor.findings import Finding, Level
from vllm_monitor.doctor.flag_rules import RULES
from vllm_monitor.doctor.subject import Subject

__all__ = ["check_flags"]

_CHECK = "flags"


def check_flags(subject: Subject) -> Iterator[Finding]:
    """Every rule that applies to the command."""
    launch = subject.launch
    if launch is None:
        return
    if launch.has("config"):
        message = "options in the file of --config were not looked at"
        yield Finding(_CHECK, Level.UNKNOWN, message, "Give them on the command line to have them looked at.")
    bad = [rule for rule in RULES if rule.applies(launch, subject)]
    for rule in bad:
        yield Finding(_CHECK, rule.level, rule.message, rule.advice, data={"rule": rule.name})
    if all(rule.level is Level.NOTE for rule in bad):
        yield Finding(_CHECK, Level.OK, "no flag that is known to be bad")
