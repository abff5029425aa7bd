"""The one writer: takes what is pending and commits it in groups, for ever and whatever happens to the disk."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vllm_monitor.clock import Clock, SystemClock
from vllm_monitor.errors import StorageError, StoreDamagedError, StoreUnavailableError
from vllm_monitor.persistence.config import PersistenceConfig
from vllm_monitor.persistence.damage.set_aside import what_happened
from vllm_monitor.persistence.documents.own_items import OwnItemError
from vllm_monitor.persistence.forks.fork_hooks import FORKS
from vllm_monitor.persistence.open_store import open_store
from vllm_monitor.persistence.pending import Batch, Pending
from vllm_monitor.persistence.read_only_view import ReadOnlyView, view_of
from vllm_monitor.persistence.sql_store import SqlStore
from vllm_monitor.persistence.sqlite_file import DATABASE_ERRORS, Fault, cause_of, fault_of

__all__ = ["OnEvent", "StoreState", "Writer"]

_LOG = logging.getLogger(__name__)

GROUP_SECONDS = 0.1
"""Samples are committed this long after the first of them: ten transactions a second, however many targets."""
_IDLE_SECONDS = 0.4
"""The writer looks around this often unasked: for a wake-up that was lost, and for a file that was replaced."""
_FIRST_RETRY_SECONDS = 0.2
_LONGEST_RETRY_SECONDS = 5.0
_OUTAGE_WORTH_AN_EVENT_SECONDS = 1.0
OnEvent = Callable[[str, str, Mapping[str, Any]], None]


@dataclass(slots=True)
class StoreState:
    """What the writer last knew of the store; read by any thread.

    Args:
        error: Why nothing can be written now; ``None`` when all is well.
        last_error: The newest trouble, also when it is over.
        last_flush: Unix seconds of the newest commit.
        quarantined: Damaged files that were set aside.
        replaced: How often the file was removed or replaced while it was open.
        deferred: Why some documents or models cannot be written though all else can; empty when none waits.
    """

    error: StorageError | None = None
    last_error: str = ""
    last_flush: float | None = None
    quarantined: tuple[str, ...] = ()
    replaced: int = 0
    deferred: str = ""


class Writer:
    """Owns the store: opens it, writes to it, retries, opens it again.

    Args:
        config: Settings.
        pending: The queues it empties.
        clock: For the times that are stored; waiting uses the host's clock.
        on_event: Called with what is worth an event: its type, a sentence, and facts.
        threaded: ``False`` makes every :meth:`wake` write before it returns.
    """

    def __init__(
        self,
        config: PersistenceConfig,
        pending: Pending,
        clock: Clock,
        on_event: OnEvent,
        *,
        threaded: bool,
    ) -> None:
        self.state = StoreState()
        self.store: SqlStore | None = None
        self.view: ReadOnlyView | None = None
        self._config = config
        self._pending = pending
        self._clock = clock
        self._host_clock = SystemClock()
        self._on_event = on_event
        self._failing_since: float | None = None
        self._deferred_at = 0.0
        self._deferred_seconds = _FIRST_RETRY_SECONDS
        self._work_lock = threading.RLock()
        self._work_depth = 0
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._committed = threading.Event()
        self._flushes: list[Future[bool]] = []
        self._flush_lock = threading.Lock()
        self._closing = False
        self._suspect = False
        self._urgent = False
        self._retry_at = 0.0
        self._retry_seconds = _FIRST_RETRY_SECONDS
        self._log_checkpoint_at = self._host_clock.monotonic() + config.flush_interval_seconds
        self._threaded = threaded
        self._thread: threading.Thread | None = None
        FORKS.writers.add(self)

    def open(self) -> StorageError | None:
        """Open the store; what went wrong is returned, and tried again later."""
        with self._working():
            try:
                self._ensure_store()
            except Exception as error:  # whatever it is, watching must go on; it is reported
                self._note_failure(error)
        return self.state.error

    def start(self) -> None:
        """Start the thread."""
        if self._threaded and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="vllm-monitor-store", daemon=True)
            self._thread.start()

    def wake(self, *, urgent: bool = False) -> None:
        """Write soon; ``urgent`` also when the last attempt has just failed."""
        if urgent:
            self._urgent = True
            self._hurry.set()
        if self._threaded:
            self._wake.set()
        else:
            self.write_all()

    def wait_for_room(self, most_seconds: float) -> None:
        """Give the writer the processor until it has committed a batch, or for a moment."""
        self._committed.wait(most_seconds)

    def suspect_damage(self) -> None:
        """Somebody read a damaged page: have the file checked, and replaced if it is so."""
        self._suspect = True
        self.wake()

    def flush(self, timeout_seconds: float) -> bool:
        """Write all that is pending; whether it is durable."""
        if not self._threaded or self._thread is None or not self._thread.is_alive():
            return self.write_all(force=True)
        done: Future[bool] = Future()
        with self._flush_lock:
            self._flushes.append(done)
        self.wake(urgent=True)
        try:
            return done.result(timeout_seconds)
        except TimeoutError:
            return False

    def close(self, timeout_seconds: float) -> None:
        """Write what is pending, stop the thread, close the store."""
        self._closing = True
        self._hurry.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_seconds)
            if self._thread.is_alive():
                _LOG.error("the store %s does not answer; it was left open", self._config.db_path)
                return
        with self._working():
            if self.store is not None or len(self._pending):
                self.write_all(force=True)
            self._close_store()
        self._answer_flushes()

    def write_all(self, *, force: bool = False) -> bool:
        """Write until nothing is pending; ``False`` when something could not be written."""
        with self._working():
            urgent, self._urgent = self._urgent or force, False
            if not urgent and self._host_clock.monotonic() < self._retry_at:
                return False
            try:
                store = self._ensure_store()
                while batch := self._pending.take(self._config.batch_size):
                    self._commit(store, batch)
                self._write_deferred(store, force=force)
                self._maintain(store)
            except Exception as error:  # the writer outlives every fault; it is reported
                self._note_failure(error)
                return False
            self._note_success()
            return not self._pending.deferred()

    def hold(self, deadline: float) -> bool:
        """Write what is pending, then do nothing until :meth:`let_go`: the process is being forked.

        Args:
            deadline: On the host's monotonic clock, in seconds; afterwards the answer is ``False``.
        """
        thread = self._thread
        if len(self._pending) and self.state.error is None and thread is not None and thread.is_alive():
            if thread is threading.current_thread():
                return False
            self.flush(max(0.0, deadline - self._host_clock.monotonic()))
        if not self._work_lock.acquire(timeout=max(0.0, deadline - self._host_clock.monotonic())):
            return False
        if self._work_depth:  # forked by what our own work has called
            self._work_lock.release()
            return False
        return True

    def let_go(self) -> None:
        """Go on after :meth:`hold`, in the thread that held."""
        self._work_lock.release()

    @contextmanager
    def _working(self) -> Iterator[None]:
        with self._work_lock:
            self._work_depth += 1
            try:
                yield
            finally:
                self._work_depth -= 1

    def _run(self) -> None:
        while not self._closing:
            if self._wake.wait(_IDLE_SECONDS):
                self._hurry.wait(GROUP_SECONDS)  # for more to write in the same transaction
            self._wake.clear()
            self._hurry.clear()
            self.write_all(force=bool(self._flushes))
            self._answer_flushes()

    def _answer_flushes(self) -> None:
        with self._flush_lock:
            waiting, self._flushes = self._flushes, []
        if not waiting:
            return
        durable = self.write_all(force=True)  # also what arrived after the last batch was taken
        for done in waiting:
            done.set_result(durable)

    def _ensure_store(self) -> SqlStore:
        if self.store is not None and (self._suspect or not self.store.is_current()):
            if not self._suspect:
                self.state.last_error = f"{self._config.db_path} was removed or replaced while it was open"
                self.state.replaced += 1
                _LOG.error("%s; a new store is started in its place", self.state.last_error)
                self._on_event("store_replaced", f"{self.state.last_error}: what was stored before is not in it", {})
            self._close_store()
        if self.store is not None and self.store.log_was_removed():
            self._save_removed_log(self.store)
        if self.store is None:
            now = self._clock.now()
            self.store = open_store(self._config, now, suspect=self._suspect)
            self._suspect = False
            self.view = None
            if self.store.quarantined is not None:
                self.state.quarantined += (str(self.store.quarantined),)
                name = str(self.store.quarantined)
                self._on_event("store_quarantined", what_happened(self._config, name), {"file": name})
        return self.store

    def _save_removed_log(self, store: SqlStore) -> None:
        message = f"the write-ahead log of {self._config.db_path} was removed while it was in use"
        try:
            store.save_removed_log()
        except DATABASE_ERRORS as error:
            message = f"{message}, and what was in it may be lost: {cause_of(error)}"
        else:
            message = f"{message}; what was in it was moved into the store"
        self.state.last_error = message
        _LOG.error("%s", message)
        self._on_event("store_log_removed", message, {})
        self._close_store()

    def _commit(self, store: SqlStore, batch: Batch) -> None:
        try:
            self._write(store, batch, Batch())
        except OwnItemError as fault:
            self._commit(store, self._defer(store, fault, batch, Batch()))
        except Exception as error:
            self._undo(store)
            if fault_of(error) is not Fault.OTHER:
                self._pending.put_back()
                raise
            self._commit_in_parts(store, batch)

    def _defer(self, store: SqlStore, fault: OwnItemError, batch: Batch, rest: Batch) -> Batch:
        """Let the record whose file cannot be written wait by itself; the batch without it."""
        self._undo(store)
        self._note_deferred(fault)
        return self._pending.defer(fault.item, batch, rest)

    def _write_deferred(self, store: SqlStore, *, force: bool) -> None:
        """Try again to write what waits by itself, one after the other, each in a transaction of its own."""
        if not force and self._host_clock.monotonic() < self._deferred_at:
            return
        blocked: set[int] = set()
        for item in self._pending.deferred():
            if id(item.kind) in blocked:
                continue  # not before the one ahead of it
            batch = self._pending.take_deferred(item)
            try:
                self._write(store, batch, Batch())
            except Exception as error:
                self._undo(store)
                self._pending.defer_again(item)
                if not isinstance(error, OwnItemError):
                    raise
                self._note_deferred(error)
                blocked.add(id(item.kind))
        if not blocked and not self._pending.deferred():
            self.state.deferred = ""
            self._deferred_seconds = _FIRST_RETRY_SECONDS

    def _note_deferred(self, fault: OwnItemError) -> None:
        if not self.state.deferred:
            _LOG.error("a record of %s cannot be written and waits by itself: %s", fault.item.kind.table, fault.cause)
        self.state.deferred = self.state.last_error = str(fault.cause)
        if not isinstance(fault.cause, TimeoutError):  # a lock is let go sooner or later: the caller may wait for it
            self._deferred_seconds = min(self._deferred_seconds * 2, _LONGEST_RETRY_SECONDS)
            fault.item.report(durable=False)
        self._deferred_at = self._host_clock.monotonic() + self._deferred_seconds

    def _write(self, store: SqlStore, batch: Batch, rest: Batch) -> None:
        """One transaction; ``rest`` is what stays in flight after it."""
        store.write(batch)
        with self._pending.view_lock:
            store.commit()
            self._pending.settle(batch, rest)
        for item in batch.rare:
            item.report(durable=True)
        self.state.last_flush = self._clock.now()
        self._committed.set()
        self._committed.clear()

    def _undo(self, store: SqlStore) -> None:
        try:
            store.rollback()
        except DATABASE_ERRORS as error:
            _LOG.warning("rolling back failed, the store is opened again: %s", error)
            self._close_store()

    def _commit_in_parts(self, store: SqlStore, batch: Batch) -> None:
        """Find the item that cannot be written (a fault of ours), drop and count it, and write the others."""
        parts = batch.halves()
        while parts:
            part = parts.pop(0)
            if not part:
                continue
            try:
                self._write(store, part, Batch.joined(parts))
            except OwnItemError as fault:
                parts = [self._defer(store, fault, part, Batch.joined(parts)), *parts]
            except Exception as error:
                self._undo(store)
                if fault_of(error) is not Fault.OTHER:
                    self._pending.put_back()
                    raise
                if len(part) > 1:
                    parts = [*part.halves(), *parts]
                else:
                    self._drop(part, Batch.joined(parts), error)

    def _drop(self, part: Batch, rest: Batch, error: Exception) -> None:
        with self._pending.view_lock:
            self._pending.settle(Batch(), rest)
        self._pending.count_drop("unwritable")
        self.state.last_error = f"{type(error).__name__}: {error}"
        _LOG.error("something saved cannot be written, and was dropped", exc_info=error)
        for item in part.rare:
            self._pending.forget(item)
            item.report(durable=False)

    def _maintain(self, store: SqlStore) -> None:
        now = self._host_clock.monotonic()
        if now >= self._log_checkpoint_at:
            self._log_checkpoint_at = now + self._config.flush_interval_seconds
            store.checkpoint_log()

    def _close_store(self) -> None:
        store, self.store = self.store, None
        if store is None:
            return
        try:
            store.close()
        except Exception:
            _LOG.exception("closing the store failed")

    def _note_failure(self, error: Exception) -> None:
        fault = fault_of(error)
        if fault is Fault.DAMAGED or isinstance(error, StoreDamagedError):
            self._suspect = True
        if not isinstance(error, StorageError):
            error = StoreUnavailableError(
                f"the store {self._config.db_path} cannot be written: {cause_of(error)}",
                hint="Check the disk and the permissions of storage_dir; writing is tried again by itself.",
            )
        if self.store is None:
            self.view = self._read_only_view()
        if self._failing_since is None:
            self._failing_since = self._host_clock.monotonic()
        if self.state.error is None:
            _LOG.error("%s; samples and records are held in memory", error)
        self.state.error = error
        self.state.last_error = str(error)
        longest = min(_LONGEST_RETRY_SECONDS, self._config.flush_interval_seconds)
        self._retry_seconds = min(self._retry_seconds * 2, longest)
        self._retry_at = self._host_clock.monotonic() + self._retry_seconds
        with self._pending.view_lock:
            waiting = self._pending.snapshot().rare
        for item in waiting:
            item.report(durable=False)

    def _read_only_view(self) -> ReadOnlyView | None:
        try:
            return view_of(self._config)
        except (OSError, StorageError) as error:
            _LOG.warning("%s cannot be read either: %s", self._config.db_path, error)
            return None

    def _note_success(self) -> None:
        if self.state.error is not None:
            _LOG.warning("the store %s can be written again", self._config.db_path)
            self._tell_of_recovery(self.state.error)
        self._failing_since = None
        self.state.error = None
        self._retry_seconds = _FIRST_RETRY_SECONDS
        self._retry_at = 0.0

    def _tell_of_recovery(self, error: StorageError) -> None:
        since = self._failing_since
        seconds = 0.0 if since is None else self._host_clock.monotonic() - since
        if seconds < _OUTAGE_WORTH_AN_EVENT_SECONDS:
            return
        dropped = {kind: number for kind, number in self._pending.dropped.items() if number}
        lost = f"dropped meanwhile: {dropped}" if dropped else "nothing was lost"
        self._on_event(
            "store_recovered",
            f"the store could not be written for {seconds:.0f} s ({error.message}); {lost}",
            {"seconds": seconds, "dropped": dropped},
        )
        self._wake.set()
