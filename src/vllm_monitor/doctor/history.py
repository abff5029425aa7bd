"""What the happy paths say: has this model run well here before, with these flags, on such a machine?"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from vllm_monitor.doctor.findings import Finding, Level
from vllm_monitor.doctor.secrets import may_be_secret
from vllm_monitor.doctor.subject import Subject
from vllm_monitor.doctor.wording import shortened
from vllm_monitor.errors import StorageError
from vllm_monitor.happy_paths import VOLATILE_ARGUMENTS
from vllm_monitor.persistence import redact
from vllm_monitor.records import HappyPath

__all__ = ["check_history"]

SAME_MEMORY_RATIO = 0.02
"""The kernel takes more or less for itself, so that the same machine does not always report the same."""
_MOST_DIFFERENCES = 4
_CHECK = "history"


@dataclass(frozen=True, slots=True)
class _Match:
    """A happy path of the model, and what is otherwise now: flags, version, hardware."""

    path: HappyPath
    flags: tuple[str, ...]
    surroundings: tuple[str, ...]

    @property
    def distance(self) -> tuple[int, int, int]:
        """Few differences first, then many runs that went well."""
        return len(self.flags), len(self.surroundings), -self.path.success_count


def check_history(subject: Subject) -> Iterator[Finding]:
    """The stored execution that is nearest to what is about to start."""
    launch, stored = subject.launch, subject.happy_paths
    if isinstance(stored, StorageError):
        yield Finding(_CHECK, Level.UNKNOWN, f"the happy paths were not looked at: {stored.message}", stored.hint)
        return
    if launch is None or launch.model is None:
        return
    matches = [_match(subject, one) for one in stored if _is_of(launch.model, one)]
    if not matches:
        advice = "When it runs well, keep it: vllm-monitor happy-paths record NAME."
        yield Finding(
            _CHECK, Level.NOTE, f"no happy path of {shortened(launch.model)} is stored: never seen here", advice
        )
        return
    best = min(matches, key=lambda one: one.distance)
    well, badly = best.path.success_count, best.path.failure_count
    runs = f"{well} later {'run' if well == 1 else 'runs'} went well, {badly} did not"
    otherwise = [*best.flags, *best.surroundings]
    data = {
        "happy_paths": len(matches),
        "nearest": best.path.name,
        "different_flags": list(best.flags),
        "different_surroundings": list(best.surroundings),
        "success_count": well,
        "failure_count": badly,
    }
    shown = "; ".join(otherwise[:_MOST_DIFFERENCES])
    more = f" and {len(otherwise) - _MOST_DIFFERENCES} more" if len(otherwise) > _MOST_DIFFERENCES else ""
    compared = f"otherwise now: {shown}{more}" if otherwise else "with these flags and this hardware"
    message = f"nearest of {len(matches)} known-good executions of this model is {best.path.name!r}, {compared}; {runs}"
    if badly > well:
        yield Finding(_CHECK, Level.WARNING, message, "Look at why: vllm-monitor events --last 7d.", data=data)
    else:
        yield Finding(_CHECK, Level.NOTE if otherwise else Level.OK, message, data=data)


def _fingerprint(path: HappyPath) -> Mapping[str, Any]:
    found = path.metadata.get("fingerprint")
    return found if isinstance(found, Mapping) else {}


def _is_of(model: str, path: HappyPath) -> bool:
    known = _fingerprint(path)
    arguments, models = known.get("arguments"), known.get("models")
    names = {str(one) for one in models} if isinstance(models, list | tuple) else set[str]()
    if isinstance(arguments, Mapping) and isinstance(arguments.get("model"), str):
        names.add(arguments["model"])
    return os.path.normpath(model) in {os.path.normpath(name) for name in names}


def _match(subject: Subject, path: HappyPath) -> _Match:
    known = _fingerprint(path)
    flags, surroundings = list(_flags(subject, known)), list(_hardware(known))
    version, now = known.get("version"), subject.installation.version.partition("+")[0]
    if version and now and str(version).partition("+")[0] != now:
        surroundings.append(f"vLLM {now} instead of {version}")
    return _Match(path, tuple(flags), tuple(surroundings))


def _flags(subject: Subject, known: Mapping[str, Any]) -> Iterator[str]:
    stored = known.get("arguments")
    if subject.launch is None or not isinstance(stored, Mapping):
        return
    # What was stored is redacted; what is now must be before the two are compared, or shown.
    before = redact({str(name).replace("_", "-"): value for name, value in stored.items()})
    after = redact(dict(subject.launch.options))
    for name in sorted({*before, *after} - VOLATILE_ARGUMENTS - {"model"}):
        if not may_be_secret(name) and before.get(name) != after.get(name):
            yield f"--{name} {_value(after, name)} instead of {_value(before, name)}"


def _value(options: Mapping[str, Any], name: str) -> str:
    if name not in options:
        return "absent"
    value = options[name]
    return "given" if value is True else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _hardware(known: Mapping[str, Any]) -> Iterator[str]:
    stored = known.get("hardware")
    if not isinstance(stored, Mapping):
        return
    cpus, machine, total = stored.get("cpus"), stored.get("machine"), stored.get("memory_total_bytes")
    if cpus and cpus != os.cpu_count():
        yield f"{os.cpu_count()} CPUs instead of {cpus}"
    if machine and machine != platform.machine():
        yield f"{platform.machine()} instead of {machine}"
    now = psutil.virtual_memory().total
    if isinstance(total, int | float) and total > 0 and abs(now - total) > SAME_MEMORY_RATIO * total:
        yield f"{now / 2**30:.0f} GiB of memory instead of {total / 2**30:.0f}"
