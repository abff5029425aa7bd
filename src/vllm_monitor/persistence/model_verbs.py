"""Saving learned models and loading them."""

from __future__ import annotations

from vllm_monitor.persistence.store_access import StoreAccess

__all__ = ["ModelVerbs"]


class ModelVerbs(StoreAccess):
    """Saving learned models and loading them. Part of ``PersistenceManager``."""
