"""What a check found, how bad it is, and what may be done about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["Finding", "Fix", "FixResult", "Level", "worst_of"]


class Level(StrEnum):
    """How bad it is. The order of the members is from the least to the worst."""

    OK = "ok"
    NOTE = "note"
    UNKNOWN = "unknown"
    WARNING = "warning"
    PROBLEM = "problem"

    @property
    def weight(self) -> int:
        """From 0 for ``ok`` up to 4 for ``problem``; what could not be looked at is worse than a note."""
        return list(Level).index(self)


@dataclass(frozen=True, slots=True)
class FixResult:
    """What became of a fix.

    Args:
        done: Whether it was done.
        text: What was done, or why not.
    """

    done: bool
    text: str


@dataclass(frozen=True, slots=True)
class Fix:
    """Something that is safe to do, and that is only done when the operator asked for it.

    Args:
        what: What it will do, in words.
        apply: Does it, after it has looked once more whether all is still as it was found; raises nothing.
    """

    what: str
    apply: Callable[[], FixResult]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check has to say.

    Args:
        check: Name of the check.
        level: How bad it is.
        message: What is the case, with its figures.
        advice: What to do next; empty when there is nothing to do.
        fix: What ``--fix`` does about it.
        data: The figures behind the message, for programs; names carry their unit.
    """

    check: str
    level: Level
    message: str
    advice: str = ""
    fix: Fix | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


def worst_of(findings: Iterable[Finding]) -> Level:
    """The worst level among findings; ``ok`` when there are none."""
    return max((one.level for one in findings), key=lambda level: level.weight, default=Level.OK)
