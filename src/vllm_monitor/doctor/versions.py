"""Whether Python, vLLM, torch and our part inside the server fit together."""

from __future__ import annotations

from collections.abc import Iterator

from packaging.version import InvalidVersion, Version

from vllm_monitor.doctor.findings import Finding, Level
from vllm_monitor.doctor.subject import Subject

__all__ = ["OLDEST_VLLM", "check_versions"]

OLDEST_VLLM = "0.27"
"""The oldest that was tried; the part inside the server needs what 0.27 brought."""
_BREAK_THE_CPU_BUILD = ("torchaudio", "torchvision", "torchcodec")
_CHECK = "versions"


def check_versions(subject: Subject) -> Iterator[Finding]:
    """Versions, several vLLMs in one environment, packages that break the start."""
    found = subject.installation
    if found.failure:
        yield Finding(_CHECK, Level.UNKNOWN, found.failure, "Name the interpreter of vLLM's environment with --python.")
        return
    servers = [f"{name} {version}" for name, version in found.servers]
    data = {"python": found.python, "interpreter": str(found.interpreter), "vllm": servers, **found.versions}
    if not servers:
        level = Level.NOTE if subject.launch is None else Level.PROBLEM
        advice = "Name the interpreter of vLLM's environment with --python, or install vLLM into this one."
        yield Finding(_CHECK, level, f"no vLLM is installed for {found.interpreter}", advice, data=data)
        return
    if len(servers) > 1:
        advice = "Remove all but one, then install that one again: they have overwritten each other's files."
        yield Finding(
            _CHECK, Level.PROBLEM, f"several vLLMs in one environment: {', '.join(servers)}", advice, data=data
        )
    if "torch" not in found.versions:
        advice = "Install vLLM again: it brings the torch that it was built for."
        yield Finding(_CHECK, Level.PROBLEM, "there is no torch beside vLLM", advice, data=data)
    breaking = [name for name in _BREAK_THE_CPU_BUILD if name in found.versions]
    if found.is_cpu_build and breaking:
        advice = f"Run {found.interpreter} -m pip uninstall -y {' '.join(breaking)}."
        message = f"{', '.join(breaking)} beside the CPU build of vLLM: each of them breaks its start"
        yield Finding(_CHECK, Level.PROBLEM, message, advice, data={"packages": breaking})
    if _is_older(found.version, OLDEST_VLLM):
        message = f"vLLM {found.version} is older than {OLDEST_VLLM}, the oldest that this monitor was tried with"
        yield Finding(
            _CHECK, Level.WARNING, message, "Expect metrics under other names, and no part inside.", data=data
        )
    ours, theirs = found.versions.get("vllm-monitor-engine"), found.versions.get("vllm-monitor")
    if ours and theirs and ours != theirs:
        message = f"vllm-monitor-engine is {ours}, vllm-monitor {theirs}"
        yield Finding(_CHECK, Level.WARNING, message, "Install both from one release.", data=data)
    beside = [f"{name} {found.versions[name]}" for name in ("torch", "vllm-monitor-engine") if name in found.versions]
    yield Finding(_CHECK, Level.OK, ", ".join([f"Python {found.python}", *servers, *beside]), data=data)


def _is_older(version: str, least: str) -> bool:
    try:
        return Version(version) < Version(least)
    except InvalidVersion:
        return False
