"""What the part inside a server told, into the store: its samples, the requests that have finished, its rare facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.collectors import ReadMark
from vllm_monitor.core.inside_progress import STARTED_EVENT, InsideProgress
from vllm_monitor.core.rejection_episodes import RejectionEpisodes
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.persistence.codecs.sample_values import milliseconds
from vllm_monitor.records import EngineNote, EngineObservation, RequestSummary

__all__ = ["InsideStories"]

SOURCE = "inside/"
RESUME_SECONDS = 7 * 86_400.0
"""Older lines are not waiting any more."""
CLOCK_SECONDS = 7_200.0
"""By so much the server's clock may have been set back since a line was stored that is read again."""
MOST_WRITERS = 1_000
NORMAL_ENDS = ("stop", "length", "repetition")


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
        self._target = target
        self._store = store
        self._ttft_objective = ttft_objective_seconds
        self._inter_token_objective = inter_token_objective_seconds
        self._notes: list[EngineNote] = []
        self._rejections = RejectionEpisodes()
        self._progress = None if store is None else InsideProgress(target, store)
        self._stored: dict[str, NDArray[np.int64]] = {}

    @property
    def read(self) -> dict[str, ReadMark]:
        """How far the writers were read whose news are stored."""
        return {} if self._progress is None else {spool: mark.read for spool, mark in self._progress.marks.items()}

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
        if self._store is None or self._progress is None:
            return
        self._progress.restore(self._store.get_events(STARTED_EVENT, limit=MOST_WRITERS, target=self._target))
        newest: dict[str, float] = {}
        for mark in sorted(self._progress.marks.values(), key=lambda one: one.at):
            newest[mark.api_server] = mark.at
            self._rejections.know(mark.api_server, mark.rejected)
        # Lines behind a mark may be stored, too: samples have no ids, but their times.
        for source, times in self._store.scrape_times(self._target, now - RESUME_SECONDS).items():
            if source.startswith(SOURCE):
                from_ms = (newest.get(source.removeprefix(SOURCE), 0.0) - CLOCK_SECONDS) * 1_000
                self._stored[source] = times[times >= from_ms].copy()

    def save(self, observation: EngineObservation) -> None:
        """Queue all that an observation tells; its facts are of the next :meth:`take_notes`."""
        facts_of_all = {"api_server": observation.api_server}
        notes = [replace(note, facts={**note.facts, **facts_of_all}) for note in observation.notes]
        self._notes += notes
        for note in self._rejections.observe(observation):
            has_id = bool(observation.spool)
            note_id = f"{observation.spool}:{observation.line}:{note.kind}" if has_id else ""
            self._notes.append(replace(note, note_id=note_id))
        if self._store is None or self._progress is None:
            return
        for note in notes:
            if note.kind == "started":
                self._progress.started(observation.spool, note)
        self._progress.see(observation)
        for request in observation.requests:
            self._store.save_request_summary(replace(request, met_objective=self._is_good(request)))
        source = SOURCE + observation.api_server
        if observation.layout is None or observation.values is None or self._is_stored(source, observation):
            return
        self._store.save_scrape(
            observation.layout, observation.values, timestamp=observation.timestamp, target=self._target, source=source
        )

    def settle(self) -> None:
        """All facts of the observations so far have been given to the store."""
        if self._progress is not None:
            self._progress.settle()

    def save_progress(self) -> None:
        """Keep how far all was read that is settled. Waits for the disk; may be called from another thread."""
        if self._progress is not None:
            self._progress.save()

    def _is_stored(self, source: str, observation: EngineObservation) -> bool:
        """Whether an earlier watch has stored these samples; the store keeps times in whole milliseconds."""
        times = self._stored.get(source)
        if times is None or not observation.spool:
            return False
        at_ms = milliseconds(observation.timestamp)
        place = int(np.searchsorted(times, at_ms))
        return place < len(times) and bool(times[place] == at_ms)

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
