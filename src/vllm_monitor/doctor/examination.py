"""All checks of a subject, and the wall around them: one that fails says so, and no secret gets out."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from vllm_monitor.doctor.descriptors import check_descriptors
from vllm_monitor.doctor.disk import check_disk
from vllm_monitor.doctor.findings import Finding, Fix, FixResult, Level
from vllm_monitor.doctor.flags import check_flags
from vllm_monitor.doctor.gpus import check_gpus
from vllm_monitor.doctor.history import check_history
from vllm_monitor.doctor.memory import check_memory
from vllm_monitor.doctor.model import check_model
from vllm_monitor.doctor.orphans import check_orphans
from vllm_monitor.doctor.plugins import check_plugins
from vllm_monitor.doctor.ports import check_port
from vllm_monitor.doctor.secrets import Secrets
from vllm_monitor.doctor.shared_memory import check_shared_memory
from vllm_monitor.doctor.subject import Subject
from vllm_monitor.doctor.variables import check_variables
from vllm_monitor.doctor.versions import check_versions

__all__ = ["CHECKS", "apply_fixes", "examine", "fixes_of"]

_LOG = logging.getLogger(__name__)

CHECKS: Mapping[str, Callable[[Subject], Iterator[Finding]]] = {
    "orphans": check_orphans,
    "port": check_port,
    "memory": check_memory,
    "gpus": check_gpus,
    "shared memory": check_shared_memory,
    "disk": check_disk,
    "descriptors": check_descriptors,
    "versions": check_versions,
    "plugins": check_plugins,
    "variables": check_variables,
    "model": check_model,
    "flags": check_flags,
    "history": check_history,
}
"""Every check by its name, in the order in which an operator should act on them."""


def examine(subject: Subject) -> list[Finding]:
    """Run all checks; what is bad comes first. Changes nothing, never raises for what a check meets.

    Args:
        subject: What is examined.
    """
    secrets = subject.secrets
    found = [_without(secrets, one) for name, check in CHECKS.items() for one in _run(name, check, subject, secrets)]
    return sorted(found, key=lambda one: -one.level.weight)  # stable: the order of the checks stays


def fixes_of(findings: Iterable[Finding]) -> list[tuple[Finding, Fix]]:
    """The findings that something safe can be done about, in their order."""
    return [(one, one.fix) for one in findings if one.fix is not None]


def apply_fixes(findings: Iterable[Finding]) -> list[tuple[Finding, FixResult]]:
    """Do what is safe; each looks once more whether all is as it was found, and says what became of it."""
    return [(finding, fix.apply()) for finding, fix in fixes_of(findings)]


def _run(name: str, check: Callable[[Subject], Iterator[Finding]], subject: Subject, secrets: Secrets) -> list[Finding]:
    try:
        return list(check(subject))
    except Exception as error:
        # One broken file of the system must not hide what the other checks have found.
        where = "".join(traceback.format_tb(error.__traceback__))  # without what it says, which may hold a secret
        _LOG.warning("the check %s failed: %s\n%s", name, secrets.hide(repr(error)), where)
        return [
            Finding(name, Level.UNKNOWN, f"this could not be looked at: {error!r}", "Report it as a fault of ours.")
        ]


def _without(secrets: Secrets, finding: Finding) -> Finding:
    fix = finding.fix
    return replace(
        finding,
        message=secrets.hide(finding.message),
        advice=secrets.hide(finding.advice),
        data=secrets.hide(finding.data),
        fix=None if fix is None else Fix(secrets.hide(fix.what), lambda: _result_without(secrets, fix.apply())),
    )


def _result_without(secrets: Secrets, result: FixResult) -> FixResult:
    return replace(result, text=secrets.hide(result.text))
