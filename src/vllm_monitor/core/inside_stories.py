"""What the part inside a server told, into the store: its samples, the requests that have finished, its rare facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm_monitor.core.rejection_episodes import RejectionEpisodes
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.records import EngineNote, EngineObservation, Event, RequestSummary, Severity

__all__ = ["InsideStories", "inside_event"]

SOURCE = "inside/"
RESUME_SECONDS = 7 * 86_400.0
"""Older lines are not waiting any more."""
NORMAL_ENDS = ("stop", "length", "repetition")

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
        self._notes: list[EngineNote] = []
        self._rejections = RejectionEpisodes()

    def resume(self, now: float, last_rejection: Mapping[str, Any] | None = None) -> None:
        """See how far an earlier watch came. Not for an event loop.

        Args:
            now: Unix seconds.
            last_rejection: The newest fact ``rejected`` or ``rejected_over`` of the server's checkpoints.
        """
        known = last_rejection or {}
        began_at, reasons = known.get("at"), known.get("reasons")
        if known.get("kind") == "rejected" and isinstance(began_at, float) and isinstance(reasons, Mapping):
            self._rejections.reopen(began_at, {name: n for name, n in reasons.items() if isinstance(n, int)})
        if self._store is None:
            return
        for source, times in self._store.scrape_times(self._target, now - RESUME_SECONDS).items():
            if source.startswith(SOURCE) and len(times):
                self.read_until[source.removeprefix(SOURCE)] = float(times[-1]) / 1000

    def save(self, observation: EngineObservation) -> None:
        """Queue all that an observation tells; its facts are of the next :meth:`take_notes`."""
        self._notes += [
            replace(note, facts={**note.facts, "api_server": observation.api_server}) for note in observation.notes
        ]
        self._notes += self._rejections.observe(observation)
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

    def take_notes(self) -> list[EngineNote]:
        """What happened inside since this was last asked, oldest first."""
        notes, self._notes = self._notes, []
        return sorted(notes, key=lambda note: note.timestamp)

    def _is_good(self, request: RequestSummary) -> bool | None:
        """Whether a request finished well and within the objectives; ``None`` when its times are not known."""
        if request.finish_reason not in NORMAL_ENDS:
            return False
        first, between = request.time_to_first_token_seconds, request.inter_token_seconds
        if first is None:
            return None
        return first <= self._ttft_objective and (between is None or between <= self._inter_token_objective)


def inside_event(target: str, note: EngineNote) -> Event | None:
    """A fact that the inside told, as an event; ``None`` for one that is not known."""
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
