"""Exporting the store and importing archives."""

from __future__ import annotations

from vllm_monitor.persistence.store_access import StoreAccess

__all__ = ["ArchiveVerbs"]


class ArchiveVerbs(StoreAccess):
    """Exporting the store and importing archives. Part of ``PersistenceManager``."""
