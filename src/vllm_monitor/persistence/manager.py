"""``PersistenceManager``: the store in the words of the domain."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection

from vllm_monitor.persistence.archive.archive_verbs import ArchiveVerbs
from vllm_monitor.persistence.damage.set_aside import what_happened
from vllm_monitor.persistence.documents.document_verbs import DocumentVerbs
from vllm_monitor.persistence.maintenance.maintenance_verbs import MaintenanceVerbs
from vllm_monitor.persistence.models.model_verbs import ModelVerbs
from vllm_monitor.persistence.pending import Batch
from vllm_monitor.persistence.records.rare_kinds import ALL_KINDS
from vllm_monitor.persistence.records.record_reader import count_records, count_with_pending
from vllm_monitor.persistence.records.record_verbs import RecordVerbs
from vllm_monitor.persistence.results import StoreHealth
from vllm_monitor.persistence.samples.sample_counts import NO_SAMPLES, count_samples
from vllm_monitor.persistence.samples.sample_rows import SeriesCatalogue
from vllm_monitor.persistence.samples.sample_verbs import SampleVerbs

__all__ = ["PersistenceManager"]

_LOG = logging.getLogger(__name__)


class PersistenceManager(SampleVerbs, RecordVerbs, DocumentVerbs, ModelVerbs, ArchiveVerbs, MaintenanceVerbs):
    """Keeps samples and records of every kind. Every method may be called from any thread.

    Saving samples only queues them: no I/O in the caller, no exception for a fault of the store. One thread
    commits them within a tenth of a second. What is saved is visible to every ``get_*`` at once, committed or
    not. Rare records (all but request summaries) are durable when ``save_*`` returns; ``enqueue_*`` returns at once.

    A store that cannot be opened or written is retried for ever; until then everything is held in bounded
    memory, and :meth:`health` says so. After :meth:`close`, samples are counted as dropped and questions
    raise.

    Args:
        config: Settings; ``None`` is the default.
        clock: For the time of samples saved without one.
        synchronous: Write in the caller instead of in a thread: deterministic, for replay and tests.

    Raises:
        ConfigurationError: When the backend is not available.
        StorageError: When the store cannot be opened and ``config.required`` is set.
    """

    def acquire_lease(self, target: str) -> bool:
        """Become the one process that watches a target into this store; ``False`` when another one is.

        The kernel gives the lease back when this process ends, however it ends. Where the store's folder
        cannot be written there is nothing to compete for, and the answer is ``True``.
        """
        try:
            return self._leases.acquire(target)
        except OSError as error:
            _LOG.warning("no lease can be kept in %s: %s", self.config.storage_dir, error)
            return True

    def release_lease(self, target: str) -> None:
        """Give the lease of a target back; nothing happens when it is not held."""
        self._leases.release(target)

    def health(self) -> StoreHealth:
        """How the store is doing. Never touches the disk."""
        state = self._writer.state
        not_durable = self._pending.not_durable()
        dropped = {kind: number for kind, number in self._pending.dropped.items() if number}
        troubles = self._documents.troubles()
        message, hint = "", ""
        overdue = self._pending.overdue(self.config.durable_timeout_seconds)
        waiting = f"{not_durable} records not durable" if not_durable else ""
        if state.error is not None:
            message, hint = f"{state.error.message}{f'; {waiting}' if waiting else ''}", state.error.hint
        elif state.deferred:
            message = f"{waiting}: {state.deferred}"
            hint = "All else is written. Check that file and its folder; it is tried again by itself."
        elif overdue:
            message = f"{waiting}: the store has not answered for {self.config.durable_timeout_seconds:g} s"
            hint = "Another process holds its lock, or the disk is slow; they are written as soon as it answers."
        elif troubles:
            message, hint = "; ".join(trouble.message for trouble in troubles), troubles[0].hint
        elif state.quarantined:
            message = what_happened(self.config, state.quarantined[-1])
            hint = self._salvager.outlook()
        elif state.replaced:
            message = f"{self.config.db_path} was removed or replaced while it was open; a new store was started"
            hint = "What was stored before is not in it: bring it back from an archive (vllm-monitor import)."
        elif dropped:
            message = f"dropped: {dropped}"
            hint = "The store could not keep up or was closed; look at last_error of the statistics."
        elif self._maintainer.state.trouble is not None:
            message, hint = self._maintainer.state.trouble
        elif self._damaged_rows:
            message, hint = f"{self._damaged_rows} damaged rows were skipped", "Run the store's check."
        return StoreHealth(
            ok=not message,
            degraded=state.error is not None,
            message=message,
            hint=hint,
            not_durable=not_durable,
            queued=len(self._pending),
            dropped=dropped,
            damaged_rows=self._damaged_rows,
            replaced_values=self._replaced_values,
            quarantined=state.quarantined,
        )

    def get_statistics(self) -> dict[str, Any]:
        """Counts per type (stored and pending), size, range of time, and how writing goes."""
        store = self._writer.store

        def ask(memory: Batch, connection: Connection | None, _: SeriesCatalogue) -> dict[str, Any]:
            stored = NO_SAMPLES if connection is None else count_samples(connection)
            counts = {
                "metrics": stored.samples + len(memory.loose) + sum(len(scrape.values) for scrape in memory.scrapes),
                "metric_rows": stored.hot_rows,
                "blocks": stored.blocks,
                "rollups": stored.rollups,
            }
            counts["models"] = 0 if connection is None else count_records(connection, "models")
            counts.update({kind.table: count_with_pending(kind, memory, connection) for kind in ALL_KINDS})
            times = [sample.time_ms for sample in memory.loose]
            times += [scrape.time_ms for scrape in memory.scrapes]
            times += [time_ms for time_ms in (stored.oldest_ms, stored.newest_ms) if time_ms is not None]
            return {
                "counts": counts,
                "oldest": min(times) / 1000 if times else None,
                "newest": max(times) / 1000 if times else None,
            }

        documents = self._count_documents()
        health = self.health()
        state = self._writer.state
        answer = self._look(ask)
        answer["counts"].update(documents)
        return {
            **answer,
            "bytes": store.size_bytes() if store is not None else 0,
            "store_id": store.store_id if store is not None else None,
            "path": str(self.config.db_path),
            "queued": health.queued,
            "not_durable": health.not_durable,
            "dropped": dict(health.dropped),
            "damaged_rows": health.damaged_rows,
            "last_flush": state.last_flush,
            "last_error": state.last_error,
            "degraded": health.degraded,
            "quarantined": list(health.quarantined),
            "damaged_documents": [trouble.message for trouble in self._documents.troubles()],
            "maintenance": asdict(self._maintainer.state),
        }
