"""Sealing, roll-ups, compaction and retention on demand."""

from __future__ import annotations

from vllm_monitor.persistence.results import MaintenanceReport
from vllm_monitor.persistence.store_access import CLOSE_TIMEOUT_FACTOR, StoreAccess

__all__ = ["MaintenanceVerbs"]


class MaintenanceVerbs(StoreAccess):
    """Sealing, roll-ups, compaction and retention on demand. Part of ``PersistenceManager``."""

    def run_maintenance(self, *, seal_all: bool = False) -> MaintenanceReport:
        """Do now what otherwise happens by itself: write what is pending, seal, join, delete what is too old.

        Waits while another process is at it. In a ``synchronous`` store this is the only time it happens.

        Args:
            seal_all: Seal also what is not due yet.

        Raises:
            StoreUnavailableError: When the store is closed or cannot be opened, or another process does not come
                to an end with its maintenance.
            StoreDamagedError: When a block did not come back as the rows it was made of; the rows are kept.
        """
        self.flush_all()
        return self._maintain(seal_all=seal_all)

    def cleanup_old_data(self) -> dict[str, int]:
        """Delete now what is older than its retention, and the oldest samples beyond ``max_bytes``.

        Samples that wait to be sealed and are too old are sealed for it, so that their roll-ups stay.

        Returns:
            What was deleted: ``metrics`` in samples, ``rollups`` in buckets, records by the name of their table.

        Raises:
            StoreUnavailableError: As :meth:`run_maintenance`.
        """
        self.flush_all()
        return dict(self._maintain(seal_all=False, asked=True).deleted)

    def _maintain(self, *, seal_all: bool, asked: bool = False) -> MaintenanceReport:
        wait_seconds = self.config.durable_timeout_seconds * CLOSE_TIMEOUT_FACTOR
        return self._maintainer.run(seal_all=seal_all, wait_seconds=wait_seconds, asked=asked)
