"""What exporting and importing report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["ExportReport", "ImportReport", "Progress"]

Progress = Callable[[int, int, str], None]
"""Called now and then as ``progress(done, total, what)``; ``total`` may change when the next step begins."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote.

    Args:
        folder: Where.
        store_id: The store that was exported.
        counts: What is in it, by type (``samples``, ``checkpoints``, ``guardrails``, ``models`` ...).
        size_bytes: Bytes of its files.
        damaged: Damaged rows of the store that were left out.
    """

    folder: str
    store_id: str
    counts: Mapping[str, int]
    size_bytes: int
    damaged: int = 0


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import found and added.

    Args:
        folder: The archive.
        store_id: The store that it was exported from.
        counts: What is in it, by type.
        added: What of that was new or newer than what was here, by type; all zero when it was imported before.
    """

    folder: str
    store_id: str
    counts: Mapping[str, int]
    added: Mapping[str, int]
