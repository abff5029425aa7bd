"""Records that know themselves how they are written: documents and models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from sqlalchemy import Connection

from vllm_monitor.persistence.pending import RareItem

__all__ = ["OwnItem", "OwnItemError"]


class OwnItemError(Exception):
    """A record's own file cannot be written now, though the database can; for the writer alone.

    Args:
        item: The record.
        cause: Why.
    """

    def __init__(self, item: OwnItem, cause: OSError) -> None:
        super().__init__(str(cause))
        self.item = item
        self.cause = cause


@dataclass(slots=True, eq=False)
class OwnItem(RareItem, ABC):
    """A rare record whose row, or file, depends on what is stored when it is written."""

    @abstractmethod
    def write(self, connection: Connection) -> None:
        """Write it, inside the write transaction of ``connection``.

        Called again after a rollback, and after a commit in doubt: writing twice must be as good as once.

        Raises:
            OSError: When a file cannot be written; the record waits by itself, and stops no other.
            DBAPIError: When the database cannot be written; likewise.
        """
