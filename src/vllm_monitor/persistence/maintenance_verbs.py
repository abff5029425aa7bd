"""Sealing, roll-ups, compaction and retention on demand."""

from __future__ import annotations

from vllm_monitor.persistence.store_access import StoreAccess

__all__ = ["MaintenanceVerbs"]


class MaintenanceVerbs(StoreAccess):
    """Sealing, roll-ups, compaction and retention on demand. Part of ``PersistenceManager``."""
