"""What the live view says about the store."""

from __future__ import annotations

from vllm_monitor.clock import SystemClock
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.terminal import StoreLine

__all__ = ["StoreLines", "store_description"]

COUNT_SHARE = 0.01
"""Counting what is stored reads the disk: it may take this share of the time."""
LEAST_COUNT_SECONDS = 1.0


def store_description(store: PersistenceManager | None) -> str:
    """Where the samples go."""
    return "" if store is None else str(store.config.storage_dir)


class StoreLines:
    """The state of the store for the live view.

    Args:
        store: The store; ``None`` when nothing is stored.
    """

    def __init__(self, store: PersistenceManager | None) -> None:
        self._store = store
        self._clock = SystemClock()
        self._count_at = 0.0
        self._samples = 0
        self._bytes = 0

    def newest(self, *, count: bool = False) -> StoreLine:
        """The state now.

        Args:
            count: Count what is stored even if that was done a moment ago.
        """
        if self._store is None:
            return StoreLine(keeping=False)
        now = self._clock.monotonic()
        if count or now >= self._count_at:
            statistics = self._store.get_statistics()
            took = self._clock.monotonic() - now
            self._count_at = now + max(LEAST_COUNT_SECONDS, took / COUNT_SHARE)
            self._samples = int(statistics["counts"]["metrics"])
            self._bytes = int(statistics["bytes"])
        health = self._store.health()
        return StoreLine(
            stored_samples=self._samples,
            bytes_on_disk=self._bytes,
            dropped=sum(health.dropped.values()),
            healthy=health.ok,
            message=health.message,
        )
