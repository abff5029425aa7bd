"""How far the writers inside a server were read, kept with what it accounts for.

The event ``inside_started`` of a writer says it in its metadata. It is saved again only once everything that was told
up to that line is in the store, so that a monitor that ends, in whatever way, goes on where it has to: it reads again
what may be missing, and what is there already has the same ids.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vllm_monitor.collectors import ReadMark
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.records import EngineNote, EngineObservation, Event, Severity

__all__ = ["STARTED_EVENT", "InsideProgress", "Mark", "inside_event"]

STARTED_EVENT = "inside_started"
_READ_KEY = "read"
_WORDS = {
    "started": ("the engine is up, says our part inside the server", Severity.INFO),
    "application_ready": ("the application is ready, says our part inside the server", Severity.INFO),
    "engine_initialized": ("the engine is ready, says our part inside the server", Severity.INFO),
    "stalled": ("no step comes although requests are in flight, says our part inside the server", Severity.CRITICAL),
    "stall_over": ("steps come again, says our part inside the server", Severity.INFO),
    "sleep": ("the engine fell asleep or woke up", Severity.INFO),
    "rejected": ("requests are refused before an engine sees them", Severity.WARNING),
    "rejected_over": ("no request is refused any more", Severity.INFO),
    "lever": ("a lever inside the server was moved", Severity.INFO),
    "end": ("the server's process ends, says our part inside it", Severity.INFO),
}


def inside_event(target: str, note: EngineNote) -> Event | None:
    """A fact that the inside told, as an event; ``None`` for one that is not known.

    Its id comes from the fact's, so that it is stored once, however often it is told.
    """
    known = _WORDS.get(note.kind)
    if known is None:
        return None
    message, severity = known
    if note.kind == "stall_over" and note.facts.get("stepped") is False:
        message = "nothing is in flight any more; whether steps come again is not seen yet"
    if note.kind == "lever":
        facts = ", ".join(f"{name} {value}" for name, value in note.facts.items() if name != "lever")
        message = f"a lever inside the server was moved: {note.facts.get('lever', 'unknown')} ({facts})"
    return Event(
        timestamp=note.timestamp,
        event_type=f"inside_{note.kind}",
        message=message,
        severity=severity,
        target=target,
        data=dict(note.facts),
        event_id=uuid.uuid5(uuid.NAMESPACE_URL, f"event {target} {note.note_id}").hex if note.note_id else None,
    )


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a writer was read, and what held then.

    Args:
        line: The number of the last line of which everything is stored.
        at: Unix seconds of that line.
        api_server: The label that its news have.
        rejected: Requests that it had refused by then, by reason.
    """

    line: int
    at: float
    api_server: str
    rejected: Mapping[str, int]

    @property
    def read(self) -> ReadMark:
        """What a reader needs of it."""
        return ReadMark(self.line, self.api_server)


class InsideProgress:
    """The marks of one server's writers. :meth:`save` is for a thread, all else for the owner.

    Args:
        target: The server's URL.
        store: Where they are kept.
    """

    def __init__(self, target: str, store: PersistenceManager) -> None:
        self.marks: dict[str, Mark] = {}
        self._target = target
        self._store = store
        self._events: dict[str, Event] = {}
        self._seen: dict[str, Mark] = {}
        self._told: Mapping[str, Mark] = {}
        self._saving = threading.Lock()

    def restore(self, events: Iterable[Event]) -> None:
        """Go on from the events ``inside_started`` that are stored, newest first."""
        for event in events:
            known = _known(event.metadata.get(_READ_KEY))
            if known is not None and known[0] not in self._events:
                spool, mark = known
                self._events[spool], self.marks[spool] = event, mark

    def started(self, spool: str, note: EngineNote) -> None:
        """A writer has told of its start."""
        event = inside_event(self._target, note)
        if event is not None:
            self._events[spool] = event

    def see(self, one: EngineObservation) -> None:
        """A line was taken; what it told is on its way to the store, or waits for a place in the story."""
        if one.spool:
            self._seen[one.spool] = Mark(one.line, one.timestamp, one.api_server, dict(one.rejected))

    def settle(self) -> None:
        """Everything of the lines that were seen has been given to the store."""
        if self._seen:
            self._told = {**self._told, **self._seen}
            self._seen = {}

    def save(self) -> None:
        """Keep how far writers were read, once it is stored what they told. Waits for the disk."""
        with self._saving:
            told = self._told
            news = {spool: mark for spool, mark in told.items() if spool in self._events}
            news = {spool: mark for spool, mark in news.items() if self.marks.get(spool) != mark}
            if not news or self._store.health().degraded or not self._store.flush_all():
                return
            for spool, mark in news.items():
                read = {
                    "spool": spool,
                    "line": mark.line,
                    "at": mark.at,
                    "api_server": mark.api_server,
                    "rejected": dict(mark.rejected),
                }
                event = replace(self._events[spool], metadata={**self._events[spool].metadata, _READ_KEY: read})
                self._store.enqueue_event(event)
                self.marks[spool] = mark


def _known(read: Any) -> tuple[str, Mark] | None:
    if not isinstance(read, Mapping):
        return None
    spool, line, at, api_server = (read.get(name) for name in ("spool", "line", "at", "api_server"))
    rejected = read.get("rejected")
    if not isinstance(spool, str) or not isinstance(api_server, str) or not isinstance(rejected, Mapping):
        return None
    if not isinstance(line, int) or not isinstance(at, float):
        return None
    counts = {str(reason): count for reason, count in rejected.items() if isinstance(count, int)}
    return spool, Mark(line, at, api_server, counts)
