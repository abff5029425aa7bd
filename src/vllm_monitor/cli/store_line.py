"""What the live view says about the store."""

from __future__ import annotations

from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.terminal import StoreLine

__all__ = ["store_description", "store_line"]


def store_description(store: PersistenceManager | None) -> str:
    """Where the samples go, in words."""
    return "nothing is stored (--no-store)" if store is None else f"stored in {store.config.storage_dir}"


def store_line(store: PersistenceManager | None) -> StoreLine:
    """The state of the store for the live view."""
    if store is None:
        return StoreLine(stored_samples=0, bytes_on_disk=0, dropped=0, healthy=True, message="nothing is stored")
    health = store.health()
    return StoreLine(
        stored_samples=health.stored_samples,
        bytes_on_disk=health.bytes_on_disk,
        dropped=health.dropped,
        healthy=health.healthy,
        message=health.message,
    )
