"""What every verb of the store stands on: its queues, its writer, its view of the database, and its end."""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeVar

from sqlalchemy import Connection

from vllm_monitor.clock import Clock, SystemClock, nanosecond_source
from vllm_monitor.errors import RecordNotFoundError, StoreUnavailableError
from vllm_monitor.persistence.config import PersistenceConfig
from vllm_monitor.persistence.damage.salvage import SalvageReport
from vllm_monitor.persistence.damage.salvager import Salvager
from vllm_monitor.persistence.file_locks import Leases
from vllm_monitor.persistence.forks.fork_hooks import FORKS
from vllm_monitor.persistence.forks.inherited_files import inherited_fault, keep_for_ever
from vllm_monitor.persistence.maintenance.maintenance import Maintainer
from vllm_monitor.persistence.pending import MOST_LOOSE_SAMPLES, Batch, Pending, RareItem
from vllm_monitor.persistence.records.rare_kinds import EVENTS
from vllm_monitor.persistence.samples.live import LiveRings
from vllm_monitor.persistence.samples.loose_series import SeriesRegistry
from vllm_monitor.persistence.samples.sample_rows import SeriesCatalogue
from vllm_monitor.persistence.sqlite_file import DATABASE_ERRORS, Fault, cause_of, fault_of
from vllm_monitor.persistence.writer import Writer
from vllm_monitor.records import Event, Severity

__all__ = ["CLOSE_TIMEOUT_FACTOR", "StoreAccess"]

_LOG = logging.getLogger(__name__)
_CROWDED = MOST_LOOSE_SAMPLES // 2
CLOSE_TIMEOUT_FACTOR = 4
"""Closing and flushing may take this many times ``durable_timeout_seconds``."""

Answer = TypeVar("Answer")


class StoreAccess:
    """Opens the store and closes it; survives forks. The arguments are those of ``PersistenceManager``.

    A fork costs its process some milliseconds: what is pending is written, and all connections are closed until they
    are next needed (``forks.fork_hooks``). The child begins with nothing in memory and opens the store for itself when
    it first uses it. Where the parent could not come to rest within seconds, the child's store is unavailable, and
    says so; likewise a child's JSON store for as long as the parent has it open.
    """

    def __init__(
        self,
        config: PersistenceConfig | None = None,
        *,
        clock: Clock | None = None,
        synchronous: bool = False,
    ) -> None:
        self.config = config if config is not None else PersistenceConfig()
        self._clock = clock if clock is not None else SystemClock()
        self._now = self._clock.now
        self._now_ns = nanosecond_source(self._clock)
        self._synchronous = synchronous
        self._leases = Leases(self.config.storage_dir / "leases")
        self._counter_lock = threading.Lock()
        self._closed = False
        self._ended = False
        self._begin()
        error = self._writer.open()
        if error is not None and self.config.required:
            self._closed = self._ended = True
            raise error
        self._writer.start()
        self._start_maintenance()
        self._salvager.wake()
        atexit.register(self.close)
        FORKS.managers.add(self)

    def _begin(self) -> None:
        """Start with nothing in memory."""
        self._pending = Pending()
        self._registry = SeriesRegistry()
        self._rings = LiveRings()
        self._damaged_rows = 0
        self._replaced_values = 0
        self._dormant = False
        self._writer = Writer(
            self.config,
            self._pending,
            self._clock,
            self._report_event,
            threaded=not self._synchronous,
        )
        self._salvager = Salvager(self.config, self._clock, self._report_salvage, threaded=not self._synchronous)
        self._maintainer = Maintainer(self.config, self._clock, lambda: self._writer.store, self._writer.suspect_damage)
        self._known_series = self._registry.fast
        self._loose = self._pending.loose
        self._loose_mark = self.config.batch_size if self._synchronous else _CROWDED

    def _start_maintenance(self) -> None:
        if not self._synchronous:
            self._maintainer.start()

    def _look(self, ask: Callable[[Batch, Connection | None, SeriesCatalogue], Answer]) -> Answer:
        """Ask memory and database as one; memory alone when the database cannot be read."""
        if self._closed:
            raise StoreUnavailableError("the store is closed", hint="Ask before close(), or open it again.")
        self._wake_if_dormant()
        written = self._writer.store
        store = self._writer.view if written is None else written
        connection: Connection | None = None
        try:
            with self._pending.view_lock:
                if store is not None:
                    connection = store.reading()
                memory = self._pending.snapshot()
            if store is not None:
                return ask(memory, connection, store.catalogue)
        except DATABASE_ERRORS as error:
            self._note_read_fault(error)
        except StoreUnavailableError as error:
            _LOG.info("answered from memory alone: %s", error)
        finally:
            if store is not None and connection is not None:
                store.release(connection)
        with self._pending.view_lock:
            memory = self._pending.snapshot()
        try:
            return ask(memory, None, SeriesCatalogue())
        except RecordNotFoundError as error:
            raise StoreUnavailableError(
                f"the store cannot be read now, and of what is not saved yet {error.message}",
                hint="health() says why it cannot be read. Try again when it can.",
            ) from error

    def _note_read_fault(self, error: Exception) -> None:
        self._writer.state.last_error = f"reading failed: {cause_of(error)}"
        _LOG.error("the store %s cannot be read: %s", self.config.db_path, cause_of(error))
        if fault_of(error) is Fault.DAMAGED:
            self._writer.suspect_damage()

    def _count_damage(self, rows: int) -> None:
        if rows:
            with self._counter_lock:
                self._damaged_rows += rows

    def _report_event(self, event_type: str, message: str, data: Mapping[str, Any]) -> None:
        severity = Severity.WARNING if event_type == "store_recovered" else Severity.CRITICAL
        event = Event(timestamp=self._now(), event_type=event_type, message=message, severity=severity, data=dict(data))
        row = EVENTS.to_row(event)
        self._pending.add_rare(RareItem(EVENTS, row["event_id"], row))
        if event_type == "store_quarantined":
            self._salvager.wake()

    def _report_salvage(self, report: SalvageReport) -> None:
        event = Event(
            timestamp=self._now(),
            event_type="store_salvaged",
            message=f"Of the damaged store {report.file} was recovered: {report.summary()}.",
            severity=Severity.WARNING,
            data={"file": report.file, "added": dict(report.added), "lost_rows": report.lost_rows},
        )
        row = EVENTS.to_row(event)
        self._pending.add_rare(RareItem(EVENTS, row["event_id"], row))
        self._writer.wake()

    def flush_all(self) -> bool:
        """Write everything that was saved before this call; whether all of it is durable now."""
        if self._closed:
            return len(self._pending) == 0
        self._wake_if_dormant()
        return self._writer.flush(self.config.durable_timeout_seconds * CLOSE_TIMEOUT_FACTOR)

    def close(self) -> None:
        """Write what is pending and close the store. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        FORKS.managers.discard(self)
        self._salvager.close(self.config.durable_timeout_seconds)
        self._maintainer.close(self.config.durable_timeout_seconds)
        self._writer.close(self.config.durable_timeout_seconds * CLOSE_TIMEOUT_FACTOR)
        self._leases.release_all()
        lost = len(self._pending)
        self._ended = True  # not before: until here what was saved could still be written
        self._loose_mark = 0
        if lost:
            _LOG.error("%d samples and records could not be written before the end", lost)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def after_fork_in_child(self) -> None:
        """Leave everything of the parent alone: its connections, its threads, its leases, its queues."""
        keep_for_ever((self._writer, self._pending, self._maintainer))
        self._maintainer.after_fork_in_child()
        self._counter_lock = threading.Lock()
        self._leases.after_fork_in_child()
        self._begin()
        self._dormant = True
        self._loose_mark = 0
        fault = inherited_fault(self.config.db_path)
        if fault is not None:
            self._writer.state.error = fault
            self._writer.state.last_error = str(fault)

    def _wake_if_dormant(self) -> None:
        """In a forked child: open the store for ourselves when it is first needed."""
        if self._dormant:
            self._start_in_child()

    def _start_in_child(self) -> None:
        with self._counter_lock:
            if self._dormant:
                self._writer.open()
                self._writer.start()
                self._start_maintenance()
                self._loose_mark = self.config.batch_size if self._synchronous else _CROWDED
                self._dormant = False
