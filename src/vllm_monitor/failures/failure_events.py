"""Failures as events of the store: written when one has happened and when it is over, read back after a restart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeGuard

from vllm_monitor.failures.watch import Episode
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.records import Event, Severity

__all__ = ["FAILURE_HAPPENED", "FAILURE_OVER", "episodes_of", "event_of", "stored_episodes"]

FAILURE_HAPPENED = "failure_happened"
FAILURE_OVER = "failure_over"


def event_of(episode: Episode, told_at: float | None = None) -> Event:
    """The event that says that a failure has happened, or, when it has ended, that it is over.

    Args:
        episode: The failure.
        told_at: Unix seconds at which that was found out; by default when it happened or ended.
    """
    is_over = episode.ended_at is not None
    unseen = "; it ended while nobody could see it" if episode.ended_unseen else ""
    message = (
        f"{episode.failure_type} is over{unseen}"
        if is_over
        else f"{episode.failure_type} has happened: {episode.reason}"
    )
    return Event(
        timestamp=told_at if told_at is not None else (episode.ended_at or episode.happened_at),
        event_type=FAILURE_OVER if is_over else FAILURE_HAPPENED,
        message=message,
        severity=Severity.INFO if is_over else Severity.CRITICAL,
        target=episode.target,
        data={
            "failure_type": episode.failure_type,
            "began_at": episode.began_at,
            "happened_at": episode.happened_at,
            "ended_at": episode.ended_at,
            "reason": episode.reason,
            "ended_unseen": episode.ended_unseen,
        },
    )


def episodes_of(events: Iterable[Event]) -> list[Episode]:
    """Failures as a store's events tell them, oldest first; what makes no sense in them is left out.

    Args:
        events: In any order; those of other types are passed over.
    """
    found: dict[tuple[str, str, float], Episode] = {}
    for event in sorted(events, key=lambda one: one.event_type == FAILURE_OVER):
        if event.event_type not in (FAILURE_HAPPENED, FAILURE_OVER):
            continue
        facts = event.data
        kind, began, happened, ended = (
            facts.get(name) for name in ("failure_type", "began_at", "happened_at", "ended_at")
        )
        if not isinstance(kind, str) or not _is_time(began) or not _is_time(happened):
            continue
        key = (event.target, kind, happened)
        episode = found.get(key) or Episode(event.target, kind, began, happened, reason=str(facts.get("reason", "")))
        unseen = facts.get("ended_unseen") is True
        found[key] = replace(episode, ended_at=ended, ended_unseen=unseen) if _is_time(ended) else episode
    return sorted(found.values(), key=lambda one: one.happened_at)


def stored_episodes(
    store: PersistenceManager, *, target: str | None = None, start: float | None = None, limit: int | None = None
) -> list[Episode]:
    """Failures that a store holds, oldest first. Not for an event loop.

    Args:
        store: The store.
        target: Only of this server; ``None`` for all.
        start: Only what happened, or ended, at or after this time (unix seconds).
        limit: Newest events read of either kind; ``None`` for all.
    """
    return episodes_of(
        event
        for event_type in (FAILURE_HAPPENED, FAILURE_OVER)
        for event in store.get_events(event_type, start, limit=limit, target=target)
    )


def _is_time(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e11
