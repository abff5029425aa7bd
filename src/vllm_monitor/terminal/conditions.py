"""How urgent a condition is, and how it looks: always a word, the colour only underlines it."""

from __future__ import annotations

from enum import StrEnum

from vllm_monitor.records import Condition

__all__ = ["CALM", "URGENCY_ORDER", "Level", "badge_style", "condition_label", "level_of", "mark_of", "urgency"]

URGENCY_ORDER: tuple[Condition, ...] = (
    Condition.ENGINE_DEAD,
    Condition.API_DEAD,
    Condition.WORKER_DEAD,
    Condition.STALLED,
    Condition.API_FROZEN,
    Condition.UNREACHABLE,
    Condition.SATURATED,
    Condition.STARVED,
    Condition.STOPPED,
    Condition.PAUSED,
    Condition.UNKNOWN,
    Condition.STARTING,
    Condition.OK,
    Condition.IDLE,
)
"""Most urgent first: nobody is served and it will not come back by itself; served badly; somebody wanted it
so, or too little is known; all is well."""

CALM = frozenset({Condition.OK, Condition.IDLE})
"""Conditions in which a server works as it should; their figures are what others are compared with."""


class Level(StrEnum):
    """How loudly a condition is shown."""

    CRITICAL = "critical"
    WARNING = "warning"
    NOTICE = "notice"
    CALM = "calm"


_CRITICAL = frozenset(URGENCY_ORDER[: URGENCY_ORDER.index(Condition.SATURATED)])
_WARNING = frozenset({Condition.SATURATED, Condition.STARVED})
_BADGE_STYLES = {
    Level.CRITICAL: "bold white on red",
    Level.WARNING: "bold black on yellow",
    Level.NOTICE: "bold white on blue",
    Level.CALM: "bold black on green",
}
_MARKS = {Level.CRITICAL: "!!", Level.WARNING: "!", Level.NOTICE: "", Level.CALM: ""}


def urgency(condition: Condition) -> int:
    """Place of a condition in :data:`URGENCY_ORDER`; smaller is more urgent."""
    return URGENCY_ORDER.index(condition)


def level_of(condition: Condition) -> Level:
    """How loudly to show a condition."""
    if condition in _CRITICAL:
        return Level.CRITICAL
    if condition in _WARNING:
        return Level.WARNING
    return Level.CALM if condition in CALM else Level.NOTICE


def badge_style(condition: Condition) -> str:
    """Rich style of a condition's badge."""
    return _BADGE_STYLES[level_of(condition)]


def mark_of(condition: Condition) -> str:
    """``!!``, ``!`` or nothing: the loudness for terminals and eyes without colours."""
    return _MARKS[level_of(condition)]


def condition_label(condition: Condition) -> str:
    """The condition in words, such as ``ENGINE DEAD``."""
    return condition.value.upper().replace("_", " ")
