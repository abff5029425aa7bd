"""The newest scrapes of every source, in memory, so that live readers never touch the disk."""

from __future__ import annotations

from collections import deque

from vllm_monitor.persistence.pending import Scrape

__all__ = ["RING_ROWS", "LiveRings"]

RING_ROWS = 300
"""Scrapes kept per target and source; more, and a hundred targets would cost a gigabyte."""
IDLE_MS = 3_600_000
"""The ring of a source that has been silent for an hour goes when another one begins: pods come and go."""


class LiveRings:
    """A bounded ring of scrapes per target and source. Thread-safe: each step is one atomic operation."""

    def __init__(self) -> None:
        self._rings: dict[tuple[str, str], deque[Scrape]] = {}

    def add(self, scrape: Scrape) -> None:
        """Remember a scrape; the oldest of its ring goes."""
        ring = self._rings.get((scrape.target, scrape.source))
        if ring is None:
            self._forget_idle(scrape.time_ms)
            ring = self._rings.setdefault((scrape.target, scrape.source), deque(maxlen=RING_ROWS))
        ring.append(scrape)

    def _forget_idle(self, now_ms: int) -> None:
        for key, ring in self._rings.copy().items():
            if not ring or ring[-1].time_ms < now_ms - IDLE_MS:
                self._rings.pop(key, None)

    def newest(self, target: str | None) -> dict[tuple[str, str], Scrape]:
        """The last scrape to arrive, by target and source."""
        return {key: ring[-1] for key, ring in self._rings.copy().items() if ring and target in (None, key[0])}

    def recent(self, target: str, source: str) -> list[Scrape]:
        """What the ring of a source holds, in order of arrival."""
        ring = self._rings.get((target, source))
        return [] if ring is None else list(ring.copy())
