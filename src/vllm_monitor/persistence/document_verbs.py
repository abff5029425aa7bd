"""Saving guardrails, plugins and strategies and loading them."""

from __future__ import annotations

from vllm_monitor.persistence.store_access import StoreAccess

__all__ = ["DocumentVerbs"]


class DocumentVerbs(StoreAccess):
    """Saving guardrails, plugins and strategies and loading them. Part of ``PersistenceManager``."""
