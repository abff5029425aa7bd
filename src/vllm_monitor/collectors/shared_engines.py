"""Stalls of a server whose engines are shared by several API servers, each in a process of its own.

Each of them sees the steps out of which its own clients get something. One whose requests wait behind those of another
sees none for a long time, and nothing is wrong: the engines stall only when none of them sees any. And a pause is of
the engines, but only who was asked for it, or for its end, knows of it.
"""

from __future__ import annotations

from dataclasses import replace

from vllm_monitor.records import EngineNote, EngineObservation

__all__ = ["SharedEngines"]

STALL_SECONDS = 3.0
SILENT_SECONDS = 5.0
"""An API server that tells nothing for so long tells of no stall, either: it may be gone."""


class SharedEngines:
    """Judges together what the API servers of one server tell. Not thread-safe."""

    def __init__(self) -> None:
        self._stepped_at: dict[str, float] = {}
        self._stalled: dict[str, tuple[float, float]] = {}
        self._said_of_pause: dict[str, bool | None] = {}
        self._is_paused: bool | None = None
        self._told = False

    def judge(self, one: EngineObservation) -> EngineObservation:
        """The line of one API server, with how long its engines have stalled, and with a note when that has changed.

        Args:
            one: Lines of all of them are given in the order of their times.
        """
        if self._said_of_pause.get(one.api_server) is not one.is_paused:
            self._is_paused = one.is_paused  # whoever said something new knows best
        self._said_of_pause[one.api_server] = one.is_paused
        one = replace(one, is_paused=self._is_paused)
        others = [at for name, at in self._stepped_at.items() if name != one.api_server]
        if one.step_age_seconds is not None:
            self._stepped_at[one.api_server] = one.timestamp - one.step_age_seconds
        stalled = min([one.stalled_seconds, *(one.timestamp - at for at in others)])
        stalled = stalled if stalled >= STALL_SECONDS and not self._is_paused else 0.0
        self._stalled[one.api_server] = (one.timestamp, stalled)
        is_stalled = any(seconds > 0 for at, seconds in self._stalled.values() if one.timestamp - at <= SILENT_SECONDS)
        if is_stalled == self._told:
            return replace(one, stalled_seconds=stalled)
        self._told = is_stalled
        facts = {"in_flight": one.in_flight, **({"seconds": round(stalled, 3)} if is_stalled else {})}
        kind = "stalled" if is_stalled else "stall_over"
        note = EngineNote(one.timestamp, kind, facts, f"{one.spool}:{one.line}:{kind}" if one.spool else "")
        return replace(one, stalled_seconds=stalled, notes=(*one.notes, note))
