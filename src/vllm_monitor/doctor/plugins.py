"""Which plugins this vLLM will load, and which the allow-list drops without a word."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_monitor.doctor.findings import Finding, Level
from vllm_monitor.doctor.subject import Subject

__all__ = ["LEVERS", "STAT_LOGGER", "check_plugins"]

STAT_LOGGER = "vllm_monitor"
LEVERS = "vllm_monitor_levers"
_ENGINE = "vllm-monitor-engine"
_ONLY_IF_NAMED = "vllm.endpoint_plugins"
_CHECK = "plugins"


def check_plugins(subject: Subject) -> Iterator[Finding]:
    """What ``VLLM_PLUGINS`` names and drops, and whether our part inside is installed and enabled."""
    found = subject.installation
    if found.failure or not found.servers:
        if "VLLM_PLUGINS" in subject.environment or subject.is_set("VLLMMON_ENABLED"):
            message = "VLLM_PLUGINS or VLLMMON_ENABLED is set, and there is no vLLM to compare it with"
            yield Finding(_CHECK, Level.UNKNOWN, message, "Name the interpreter of vLLM's environment with --python.")
        return
    is_installed, is_enabled = _ENGINE in found.versions, subject.is_set("VLLMMON_ENABLED")
    findings = [*_our_part(is_installed=is_installed, is_enabled=is_enabled)]
    if "VLLM_PLUGINS" in subject.environment:
        findings += _allow_list(subject, is_enabled=is_enabled and is_installed)
    elif any(one.name == LEVERS for one in found.plugins):
        advice = f"For the levers set VLLM_PLUGINS={','.join(_all_names(subject))}."
        findings.append(Finding(_CHECK, Level.NOTE, f"the levers ({LEVERS}) are installed and not named", advice))
    yield from findings or [Finding(_CHECK, Level.OK, f"all {len(found.plugins)} installed plugins are loaded")]


def _our_part(*, is_installed: bool, is_enabled: bool) -> Iterator[Finding]:
    if is_enabled and not is_installed:
        message = f"VLLMMON_ENABLED is set, and {_ENGINE} is not installed beside vLLM: nothing is recorded inside"
        yield Finding(_CHECK, Level.WARNING, message, "Install it into vLLM's environment, or unset the variable.")
    if is_installed and not is_enabled:
        message = (
            f"{_ENGINE} is installed and VLLMMON_ENABLED is not set: nothing is recorded inside, and vLLM keeps its "
            "statistics on even with --disable-log-stats"
        )
        yield Finding(_CHECK, Level.NOTE, message, "Set VLLMMON_ENABLED=1 to record.")


def _allow_list(subject: Subject, *, is_enabled: bool) -> Iterator[Finding]:
    # vLLM splits at commas and strips nothing: a blank makes another name of it.
    named = subject.environment["VLLM_PLUGINS"].split(",")
    plugins = subject.installation.plugins
    installed = {one.name for one in plugins}
    dropped = sorted({one.name for one in plugins if one.name not in named and one.group != _ONLY_IF_NAMED})
    advice = f"Set VLLM_PLUGINS={','.join(_all_names(subject))} to have them all."
    data = {"named": named, "installed": sorted(installed), "dropped": dropped}
    if dropped:
        ours = STAT_LOGGER in dropped and is_enabled
        level = Level.PROBLEM if ours else Level.WARNING
        told = f" ({STAT_LOGGER} is ours: VLLMMON_ENABLED=1 has no effect)" if ours else ""
        message = f"VLLM_PLUGINS drops installed plugins without a word: {', '.join(dropped)}{told}"
        yield Finding(_CHECK, level, message, advice, data=data)
    if LEVERS in installed and LEVERS not in named:
        yield Finding(_CHECK, Level.NOTE, f"VLLM_PLUGINS does not name the levers ({LEVERS})", advice, data=data)
    blank = [name for name in named if name != name.strip() and name.strip() in installed]
    if blank:
        message = f"VLLM_PLUGINS has blanks around {', '.join(map(repr, blank))}: vLLM takes them for part of the name"
        yield Finding(_CHECK, Level.WARNING, message, "Write the names with commas and without blanks.", data=data)
    strange = sorted({name.strip() for name in named} - installed - {""})
    if strange:
        message = f"VLLM_PLUGINS names plugins that are not installed: {', '.join(strange)}"
        yield Finding(_CHECK, Level.WARNING, message, "Install them beside vLLM, or correct the names.", data=data)
    if not dropped and not strange and not blank:
        yield Finding(_CHECK, Level.OK, f"VLLM_PLUGINS names all that is installed: {', '.join(named)}", data=data)


def _all_names(subject: Subject) -> list[str]:
    return sorted({one.name for one in subject.installation.plugins})
