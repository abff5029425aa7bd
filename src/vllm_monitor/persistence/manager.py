"""``PersistenceManager``: the store in the words of the domain."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
import weakref
from array import array
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from vllm_monitor.clock import Clock, SystemClock
from vllm_monitor.errors import ConfigurationError, StoreUnavailableError, ValueNotStorableError
from vllm_monitor.persistence.config import PersistenceConfig, StorageBackend
from vllm_monitor.persistence.file_locks import Leases
from vllm_monitor.persistence.live import LiveRings
from vllm_monitor.persistence.loose_series import SeriesRegistry
from vllm_monitor.persistence.pending import (
    MOST_LOOSE_SAMPLES,
    Batch,
    LooseSample,
    Pending,
    RareItem,
    Scrape,
)
from vllm_monitor.persistence.rare_rows import CHECKPOINTS, EVENTS, RareKind
from vllm_monitor.persistence.record_reader import count_records, read_records
from vllm_monitor.persistence.results import SeriesData, StoreHealth, metric_type_text
from vllm_monitor.persistence.sample_reader import (
    SampleReader,
    Selector,
    count_samples,
    loose_to_dict,
    scrape_to_dicts,
)
from vllm_monitor.persistence.sample_rows import SeriesCatalogue
from vllm_monitor.persistence.sample_values import milliseconds, to_sample_value
from vllm_monitor.persistence.sqlite_file import Fault, fault_of
from vllm_monitor.persistence.value_codec import encode_value
from vllm_monitor.persistence.writer import Writer
from vllm_monitor.records import Event, Layout, LifecycleState, MetricType, Series, Severity, StateCheckpoint

__all__ = ["PersistenceManager"]

_LOG = logging.getLogger(__name__)
_SCRAPES_PER_SYNCHRONOUS_WRITE = 64
_CROWDED = MOST_LOOSE_SAMPLES // 2
_MOST_WAIT_WHEN_CROWDED_SECONDS = 0.0005
_CLOSE_TIMEOUT_FACTOR = 4

Record = TypeVar("Record", StateCheckpoint, Event)
Answer = TypeVar("Answer")
_Query = Callable[[SampleReader], Answer]


class PersistenceManager:
    """Keeps samples, checkpoints and events. Every method may be called from any thread.

    Saving samples only queues them: no I/O in the caller, no exception for a fault of the store. One thread
    commits them within a tenth of a second. What is saved is visible to every ``get_*`` at once, committed or
    not. Rare records (checkpoints, events) are durable when ``save_*`` returns; ``enqueue_*`` returns at once.

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

    def __init__(
        self,
        config: PersistenceConfig | None = None,
        *,
        clock: Clock | None = None,
        synchronous: bool = False,
    ) -> None:
        self.config = config if config is not None else PersistenceConfig()
        if self.config.backend is StorageBackend.JSON:
            raise ConfigurationError(
                "the JSON backend does not keep samples, checkpoints and events",
                hint="Use StorageBackend.HYBRID (the default) or StorageBackend.SQLITE.",
            )
        self._clock = clock if clock is not None else SystemClock()
        self._now = self._clock.now
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
        atexit.register(self.close)
        _MANAGERS.add(self)

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
            self._report_quarantine,
            threaded=not self._synchronous,
        )
        self._known_series = self._registry.fast
        self._loose = self._pending.loose
        self._loose_mark = self.config.batch_size if self._synchronous else _CROWDED

    # --- samples ---------------------------------------------------------------------------------------

    def save_metric(
        self,
        metric_type: str | MetricType,
        metric_name: str,
        value: Any,
        tags: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        timestamp: float | None = None,
        target: str = "",
    ) -> None:
        """Save one sample. Queues only; see the class for what that promises.

        When hundreds of thousands of samples wait although the disk is well, each call waits up to half a
        millisecond for the writer rather than lose one.

        Args:
            metric_type: Where it comes from, see :class:`~vllm_monitor.records.MetricType`.
            metric_name: The name, as it will be asked for.
            value: A float, or a number that float64 holds exactly; its Python type comes back.
            tags: Labels.
            metadata: Anything of ``value_codec``.
            timestamp: Unix seconds, rounded to the millisecond; ``None`` is now.
            target: The server's URL.

        Raises:
            ValueNotStorableError: When a value could not be given back unchanged.
        """
        try:
            series = self._known_series[target, metric_type, metric_name, tuple(tags.items()) if tags else ()]
        except (KeyError, TypeError):
            series = self._registry.register(target, metric_type, metric_name, tags)
        sample = LooseSample(
            series,
            round(self._now() * 1000) if timestamp is None else milliseconds(timestamp),
            value if type(value) is float else to_sample_value(value),
            None if not metadata else encode_value(metadata),
        )
        self._loose.append(sample)
        series.newest = sample
        if len(self._loose) >= self._loose_mark:
            self._relieve()

    def _relieve(self) -> None:
        """The queue of samples is long (or nobody empties it): write, wait a moment, or drop."""
        if self._ended:
            self._pending.count_drop("closed", len(self._loose))
            self._loose.clear()
            return
        self._wake_if_dormant()
        if len(self._loose) < self._loose_mark:
            return
        if len(self._loose) > MOST_LOOSE_SAMPLES:
            self._pending.bound_loose()
        self._writer.wake()
        if not self._synchronous and self._writer.state.error is None:
            self._writer.wait_for_room(_MOST_WAIT_WHEN_CROWDED_SECONDS)

    def save_scrape(
        self,
        layout: Layout,
        values: array[float],
        *,
        timestamp: float,
        target: str = "",
        source: str = "metrics",
    ) -> None:
        """Save a whole scrape: many series, one time, one durable row. Queues only.

        Args:
            layout: The columns; use the same object for every scrape with the same series.
            values: ``array('d')``, one per column. The store keeps it: do not change it afterwards.
            timestamp: Unix seconds, rounded to the millisecond.
            target: The server's URL.
            source: Which page or probe of the target; scrapes of different sources are kept apart.

        Raises:
            ValueNotStorableError: When ``values`` does not fit ``layout``, or ``timestamp`` is no time.
        """
        if not isinstance(values, array) or values.typecode != "d" or len(values) != len(layout):
            raise ValueNotStorableError(
                f"a scrape of {len(layout)} series needs as many values",
                hint="Pass array('d') with one float per series of the layout.",
            )
        if not source:
            raise ValueNotStorableError("a scrape has no source", hint='Name it, for instance "metrics".')
        scrape = Scrape(target, source, layout, milliseconds(timestamp), values)
        if self._closed:
            self._pending.count_drop("closed")
            return
        self._wake_if_dormant()
        self._rings.add(scrape)
        waiting = self._pending.add_scrape(scrape)
        if self._synchronous and waiting >= _SCRAPES_PER_SYNCHRONOUS_WRITE:
            self._writer.wake()

    def get_metrics(
        self,
        metric_type: str | MetricType | None = None,
        metric_name: str | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
        limit: int | None = 1000,
        *,
        target: str | None = None,
    ) -> list[dict[str, Any]]:
        """The newest samples that pass the filters, newest first; times are unix seconds, both inclusive.

        Returns:
            Dictionaries with ``timestamp``, ``metric_type``, ``metric_name``, ``value``, ``tags``,
            ``metadata`` and ``target``.
        """
        most = _checked_limit(limit)
        selector = _selector(target, metric_name, None, start_time, end_time, metric_type)
        return self._ask(lambda reader: reader.newest(selector, most), [])

    def query_range(
        self,
        metric_name: str | None,
        *,
        target: str | None = None,
        tags: Mapping[str, Any] | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
    ) -> list[SeriesData]:
        """Every series of a name with its raw samples, as numpy arrays.

        Args:
            metric_name: The name as on the page; ``None`` is every name.
            target: Only this server.
            tags: Only series that have all of these labels.
            start_time: Unix seconds, inclusive.
            end_time: Unix seconds, inclusive.
        """
        selector = _selector(target, metric_name, tags, start_time, end_time)
        return self._ask(lambda reader: reader.range(selector), [])

    def latest(self, *, target: str | None = None, metric_name: str | None = None) -> list[dict[str, Any]]:
        """The newest sample of each series, in the form of :meth:`get_metrics`.

        What this process saved is answered from memory. Targets that it did not save, and only those, are
        read from the store: their newest scrape of each source, and their newest single samples.
        """
        selector = _selector(target, metric_name, None, None, None)
        newest = self._rings.newest(target)
        found = [sample for scrape in newest.values() for sample in scrape_to_dicts(scrape, selector)]
        here = set(newest)
        for series in self._registry.all():
            if selector.takes_target(series.target):
                here.add((series.target, ""))
                sample = loose_to_dict(series)
                if sample is not None and selector.takes(series.metric_type, series.metric_name, series.tags):
                    found.append(sample)
        if target is not None and newest:
            return found
        return found + self._ask(lambda reader: reader.newest_row(selector, here), [])

    def recent_scrapes(self, target: str, source: str = "metrics") -> list[tuple[float, Layout, array[float]]]:
        """The last scrapes (at most 300) that this process saved, oldest first, from memory alone."""
        return [(scrape.time_ms / 1000, scrape.layout, scrape.values) for scrape in self._rings.recent(target, source)]

    def list_targets(self) -> list[str]:
        """Every target with samples, sorted."""
        return self._ask(lambda reader: reader.targets(), [])

    def list_series(self, target: str | None = None) -> list[Series]:
        """Every series (of one target), sorted by name and labels."""
        return self._ask(lambda reader: reader.series(target), [])

    def scrape_times(
        self, target: str, start_time: float | None = None, end_time: float | None = None
    ) -> dict[str, NDArray[np.int64]]:
        """Source to the ascending unix milliseconds of its stored scrapes; where they are apart is a gap."""
        selector = _selector(target, None, None, start_time, end_time)
        return self._ask(lambda reader: reader.scrape_times(selector), {})

    # --- rare records ----------------------------------------------------------------------------------

    def save_checkpoint(self, checkpoint: StateCheckpoint) -> str:
        """Save a checkpoint; durable when the call returns, and its id is returned.

        Arguments and environment are redacted. The call waits at most ``durable_timeout_seconds``, and not
        longer than the first attempt to write takes; a record that is not durable then stays in memory, is
        retried, and counts in :meth:`health`.

        Raises:
            ValueNotStorableError: When something in it could not be given back unchanged.
            StoreUnavailableError: When it is not durable and ``config.required`` is set.
        """
        return self._save(CHECKPOINTS, checkpoint)

    def save_event(self, event: Event) -> str:
        """Save an event; otherwise as :meth:`save_checkpoint`."""
        return self._save(EVENTS, event)

    async def save_checkpoint_async(self, checkpoint: StateCheckpoint) -> str:
        """As :meth:`save_checkpoint`, without blocking the loop."""
        return await self._save_async(CHECKPOINTS, checkpoint)

    async def save_event_async(self, event: Event) -> str:
        """As :meth:`save_event`, without blocking the loop."""
        return await self._save_async(EVENTS, event)

    def enqueue_checkpoint(self, checkpoint: StateCheckpoint) -> str:
        """Queue a checkpoint and return its id at once; records are committed in order of arrival.

        Unlike :meth:`save_checkpoint`, an object that cannot be stored does not raise: its ``repr`` is
        stored in its place and counted in :meth:`health`.
        """
        return self._enqueue(CHECKPOINTS, checkpoint)

    def enqueue_event(self, event: Event) -> str:
        """Queue an event; otherwise as :meth:`enqueue_checkpoint`."""
        return self._enqueue(EVENTS, event)

    def is_durable(self, record_id: str) -> bool:
        """Whether a record that this manager was given is committed.

        Positive knowledge only: ``False`` also for a record that was dropped, or that lies more than ten
        thousand records back.
        """
        return self._pending.is_durable(record_id)

    def get_checkpoints(
        self,
        state: LifecycleState | str | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
        limit: int | None = 100,
        *,
        target: str | None = None,
    ) -> list[StateCheckpoint]:
        """The newest checkpoints that pass the filters, newest first; times are inclusive."""
        wanted = state.value if isinstance(state, LifecycleState) else state and state.lower()
        return self._records(CHECKPOINTS, wanted, start_time, end_time, limit, target)

    def get_events(
        self,
        event_type: str | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
        limit: int | None = 100,
        *,
        target: str | None = None,
    ) -> list[Event]:
        """The newest events that pass the filters, newest first; times are inclusive."""
        return self._records(EVENTS, event_type, start_time, end_time, limit, target)

    def _save(self, kind: RareKind[Record], record: Record) -> str:
        item = self._queue(kind, kind.to_row(record))
        durable = False
        with suppress(TimeoutError):  # not durable yet: that is the answer
            durable = item.first_attempt.result(self.config.durable_timeout_seconds)
        return self._checked(item, durable=durable)

    async def _save_async(self, kind: RareKind[Record], record: Record) -> str:
        row = kind.to_row(record)
        if self._synchronous:
            item = self._queue(kind, row)
            return self._checked(item, durable=item.first_attempt.result())
        item = self._queue(kind, row)
        waiting = asyncio.shield(asyncio.wrap_future(item.first_attempt))
        durable = False
        with suppress(TimeoutError):  # not durable yet: that is the answer
            durable = await asyncio.wait_for(waiting, self.config.durable_timeout_seconds)
        return self._checked(item, durable=durable)

    def _enqueue(self, kind: RareKind[Record], record: Record) -> str:
        return self._queue(kind, kind.to_row(record, on_unknown=self._shown)).record_id

    def _queue(self, kind: RareKind[Any], row: dict[str, Any]) -> RareItem:
        item = RareItem(kind, row[kind.id_field], row)
        if self._closed:
            self._pending.count_drop("closed")
            item.report(durable=False)
            return item
        self._wake_if_dormant()
        self._pending.add_rare(item)
        self._writer.wake(urgent=True)
        return item

    def _checked(self, item: RareItem, *, durable: bool) -> str:
        if not durable and self.config.required:
            error = self._writer.state.error
            raise StoreUnavailableError(
                f"a record of {item.kind.table} is not durable",
                hint=error.hint if error is not None else "The store does not answer in time; check its disk.",
            )
        return item.record_id

    def _shown(self, value: Any) -> str:
        with self._counter_lock:
            self._replaced_values += 1
        try:
            return repr(value)
        except Exception as error:  # noqa: BLE001  # a foreign __repr__ may raise anything; the type is shown
            return f"<{type(value).__name__} whose repr raised {type(error).__name__}>"

    def _report_quarantine(self, name: str) -> None:
        event = Event(
            timestamp=self._now(),
            event_type="store_quarantined",
            message=f"The store was damaged; it was kept as {name} and a new one was started.",
            severity=Severity.CRITICAL,
            data={"file": name},
        )
        row = EVENTS.to_row(event)
        self._pending.add_rare(RareItem(EVENTS, row["event_id"], row))

    # --- reading ---------------------------------------------------------------------------------------

    def _ask(self, query: _Query[Answer], nothing: Answer) -> Answer:
        def ask(memory: Batch, connection: Connection | None, catalogue: SeriesCatalogue) -> Answer:
            reader = SampleReader(memory, connection, catalogue)
            answer = query(reader)
            self._count_damage(reader.damaged_rows)
            return answer

        return self._look(ask, nothing)

    def _records(
        self,
        kind: RareKind[Record],
        wanted: str | None,
        start: float | None,
        end: float | None,
        limit: int | None,
        target: str | None,
    ) -> list[Record]:
        most = _checked_limit(limit)

        def ask(memory: Batch, connection: Connection | None, _: SeriesCatalogue) -> list[Record]:
            records, damaged = read_records(
                kind, memory, connection, wanted=wanted, start=start, end=end, target=target, limit=most
            )
            self._count_damage(damaged)
            return records

        return self._look(ask, [])

    def _look(self, ask: Callable[[Batch, Connection | None, SeriesCatalogue], Answer], nothing: Answer) -> Answer:
        """Ask memory and database as one; memory alone when the database cannot be read."""
        if self._closed:
            raise StoreUnavailableError("the store is closed", hint="Ask before close(), or open it again.")
        self._wake_if_dormant()
        store = self._writer.store
        connection: Connection | None = None
        try:
            with self._pending.view_lock:
                if store is not None:
                    connection = store.reading()
                memory = self._pending.snapshot()
            if store is not None:
                return ask(memory, connection, store.catalogue)
        except DBAPIError as error:
            self._note_read_fault(error)
        except StoreUnavailableError as error:
            _LOG.info("answered from memory alone: %s", error)
        finally:
            if store is not None and connection is not None:
                store.release(connection)
        with self._pending.view_lock:
            memory = self._pending.snapshot()
        return ask(memory, None, SeriesCatalogue())

    def _note_read_fault(self, error: DBAPIError) -> None:
        self._writer.state.last_error = f"reading failed: {error.orig}"
        _LOG.error("the store %s cannot be read: %s", self.config.db_path, error.orig)
        if fault_of(error) is Fault.DAMAGED:
            self._writer.suspect_damage()

    def _count_damage(self, rows: int) -> None:
        if rows:
            with self._counter_lock:
                self._damaged_rows += rows

    # --- life ------------------------------------------------------------------------------------------

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

    def flush_all(self) -> bool:
        """Write everything that was saved before this call; whether all of it is durable now."""
        if self._closed:
            return len(self._pending) == 0
        self._wake_if_dormant()
        return self._writer.flush(self.config.durable_timeout_seconds * _CLOSE_TIMEOUT_FACTOR)

    def health(self) -> StoreHealth:
        """How the store is doing. Never touches the disk."""
        state = self._writer.state
        not_durable = self._pending.not_durable()
        dropped = {kind: number for kind, number in self._pending.dropped.items() if number}
        message, hint = "", ""
        if state.error is not None:
            message, hint = state.error.message, state.error.hint
        elif state.quarantined:
            message = f"a damaged store was set aside as {state.quarantined[-1]}"
            hint = "Its samples are not shown; keep the file if you want them back."
        elif dropped:
            message = f"dropped: {dropped}"
            hint = "The store could not keep up or was closed; look at last_error of the statistics."
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
            samples, rows, oldest, newest = (0, 0, None, None) if connection is None else count_samples(connection)
            tables = ("checkpoints", "events")
            counts = {
                "metrics": samples + len(memory.loose) + sum(len(scrape.values) for scrape in memory.scrapes),
                "metric_rows": rows,
            }
            for table in tables:
                stored = 0 if connection is None else count_records(connection, table)
                counts[table] = stored + sum(item.kind.table == table for item in memory.rare)
            times = [sample.time_ms for sample in (*memory.loose, *memory.scrapes)]
            times += [time_ms for time_ms in (oldest, newest) if time_ms is not None]
            return {
                "counts": counts,
                "oldest": min(times) / 1000 if times else None,
                "newest": max(times) / 1000 if times else None,
            }

        health = self.health()
        state = self._writer.state
        return {
            **self._look(ask, {}),
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
        }

    def close(self) -> None:
        """Write what is pending and close the store. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        _MANAGERS.discard(self)
        self._writer.close(self.config.durable_timeout_seconds * _CLOSE_TIMEOUT_FACTOR)
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

    # --- fork ------------------------------------------------------------------------------------------

    def _after_fork_in_child(self) -> None:
        """Leave everything of the parent alone: its connection, its thread, its leases, its queues."""
        # SQLite connections must not even be closed on this side of a fork, so they are kept for good.
        _INHERITED.append((self._writer, self._pending))
        self._counter_lock = threading.Lock()
        self._leases.after_fork_in_child()
        self._begin()
        self._dormant = True
        self._loose_mark = 0

    def _wake_if_dormant(self) -> None:
        """In a forked child: open the store for ourselves when it is first needed."""
        if not self._dormant:
            return
        with self._counter_lock:
            if not self._dormant:
                return
            self._writer.open()
            self._writer.start()
            self._loose_mark = self.config.batch_size if self._synchronous else _CROWDED
            self._dormant = False


_MANAGERS: weakref.WeakSet[PersistenceManager] = weakref.WeakSet()
_INHERITED: list[object] = []


def _after_fork_in_child() -> None:
    for manager in list(_MANAGERS):
        manager._after_fork_in_child()  # noqa: SLF001  # the module's own class


os.register_at_fork(after_in_child=_after_fork_in_child)


def _selector(
    target: str | None,
    metric_name: str | None,
    tags: Mapping[str, Any] | None,
    start_time: float | None,
    end_time: float | None,
    metric_type: str | MetricType | None = None,
) -> Selector:
    unbounded = Selector()
    return Selector(
        target=target,
        metric_type=None if metric_type is None else metric_type_text(metric_type),
        metric_name=metric_name,
        tags=tags,
        start_ms=_bound(start_time, unbounded.start_ms),
        end_ms=_bound(end_time, unbounded.end_ms),
    )


def _bound(time: float | None, unbounded: int) -> int:
    """A bound in milliseconds, rounded as the samples were, so that a sample's own time finds it."""
    if time is None:
        return unbounded
    if time in (float("inf"), float("-inf")):
        return Selector().end_ms if time > 0 else Selector().start_ms
    return milliseconds(time)


def _checked_limit(limit: int | None) -> int | None:
    if limit is not None and limit < 0:
        raise ConfigurationError(f"limit cannot be {limit}", hint="Pass a positive number, or None for all.")
    return limit
