"""What the part inside a server told, into the store: its samples, the requests that have finished, its rare facts."""

from __future__ import annotations

from dataclasses import replace

from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.records import EngineNote, EngineObservation, Event, RequestSummary, Severity

__all__ = ["InsideStories"]

SOURCE = "inside/"
RESUME_SECONDS = 7 * 86_400.0
"""Older lines are not waiting any more."""
NORMAL_ENDS = ("stop", "length", "repetition")

_WORDS = {
    "engine_initialized": ("the engine is ready, says our part inside the server", Severity.INFO),
    "stalled": ("no step comes although requests are in flight, says our part inside the server", Severity.CRITICAL),
    "stall_over": ("steps come again, says our part inside the server", Severity.INFO),
    "sleep": ("the engine fell asleep or woke up", Severity.INFO),
    "rejected": ("requests were refused by the admission limit", Severity.WARNING),
    "lever": ("a lever inside the server was moved", Severity.INFO),
    "end": ("the server's process ends, says our part inside it", Severity.INFO),
}


class InsideStories:
    """Stores what :class:`~vllm_monitor.records.EngineObservation` tells. Not thread-safe.

    Args:
        target: The server's URL.
        store: Where it goes; ``None`` keeps nothing.
        ttft_objective_seconds: Longest time to first token that is still good.
        inter_token_objective_seconds: Longest mean time between two tokens that is still good.
    """

    def __init__(
        self,
        target: str,
        store: PersistenceManager | None,
        *,
        ttft_objective_seconds: float,
        inter_token_objective_seconds: float,
    ) -> None:
        self.read_until: dict[str, float] = {}
        self._target = target
        self._store = store
        self._ttft_objective = ttft_objective_seconds
        self._inter_token_objective = inter_token_objective_seconds
        self._events: list[Event] = []

    def resume(self, now: float) -> None:
        """See how far an earlier watch came. Not for an event loop.

        Args:
            now: Unix seconds.
        """
        if self._store is None:
            return
        for source, times in self._store.scrape_times(self._target, now - RESUME_SECONDS).items():
            if source.startswith(SOURCE) and len(times):
                self.read_until[source.removeprefix(SOURCE)] = float(times[-1]) / 1000

    def save(self, observation: EngineObservation) -> None:
        """Queue all that an observation tells; its facts are events of the next :meth:`take_events`."""
        self._events += self._events_of(observation)
        if self._store is None:
            return
        for request in observation.requests:
            self._store.save_request_summary(replace(request, met_objective=self._is_good(request)))
        if observation.layout is not None and observation.values is not None:
            self._store.save_scrape(
                observation.layout,
                observation.values,
                timestamp=observation.timestamp,
                target=self._target,
                source=SOURCE + observation.api_server,
            )

    def take_events(self) -> list[Event]:
        """What happened inside since this was last asked."""
        events, self._events = self._events, []
        return events

    def _events_of(self, observation: EngineObservation) -> list[Event]:
        refused = [note for note in observation.notes if note.kind == "rejected"]
        told = [_event(self._target, note) for note in observation.notes if note.kind != "rejected"]
        if refused:  # hundreds a second under overload: told once for each line
            facts = {**refused[-1].facts, "requests": len(refused)}
            told.append(_event(self._target, EngineNote(refused[-1].timestamp, "rejected", facts)))
        return [event for event in told if event is not None]

    def _is_good(self, request: RequestSummary) -> bool | None:
        """Whether a request finished well and within the objectives; ``None`` when its times are not known."""
        if request.finish_reason not in NORMAL_ENDS:
            return False
        first, between = request.time_to_first_token_seconds, request.inter_token_seconds
        if first is None:
            return None
        return first <= self._ttft_objective and (between is None or between <= self._inter_token_objective)


def _event(target: str, note: EngineNote) -> Event | None:
    known = _WORDS.get(note.kind)
    if known is None:
        return None
    message, severity = known
    return Event(
        timestamp=note.timestamp,
        event_type=f"inside_{note.kind}",
        message=message,
        severity=severity,
        target=target,
        data=dict(note.facts),
    )
