"""What keeps a store small and quick: sealing, joining, retention, one step at a time, by one process at a time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vllm_monitor.clock import Clock, SystemClock
from vllm_monitor.errors import StoreDamagedError, StoreUnavailableError
from vllm_monitor.persistence.config import PersistenceConfig
from vllm_monitor.persistence.maintenance.maintenance_lock import MaintenanceLock
from vllm_monitor.persistence.maintenance.retention import cutoff_ms, expire, retention_trouble, shrink
from vllm_monitor.persistence.maintenance.short_transactions import ShortTransactions
from vllm_monitor.persistence.models.model_store import remove_orphans
from vllm_monitor.persistence.results import MaintenanceReport
from vllm_monitor.persistence.samples.compaction import Compacted, Compactor
from vllm_monitor.persistence.samples.sealing import Sealed, Sealer
from vllm_monitor.persistence.sql_store import SqlStore
from vllm_monitor.persistence.sqlite_file import DATABASE_ERRORS, Fault, cause_of, fault_of

__all__ = ["Maintainer", "MaintenanceState"]

_LOG = logging.getLogger(__name__)

_LONGEST_BACK_OFF_SECONDS = 600.0
_LONGEST_BETWEEN_RETENTION_SECONDS = 60.0
_STEPS_BETWEEN_RETENTION = 6
_FAILURES_WORTH_A_WORD = 3


@dataclass(slots=True)
class MaintenanceState:
    """How maintenance goes; read by any thread.

    Args:
        runs: Steps that this process did.
        failures: Steps that failed.
        failures_in_a_row: Those since the last one that did not fail.
        trouble: A message and a hint for a person; ``None`` when all is well.
        last_error: The newest failure, also when it is over.
        last_run: Unix seconds of the newest step.
        sealed_blocks: Blocks that this process sealed.
        deleted: What retention deleted, by kind.
    """

    runs: int = 0
    failures: int = 0
    failures_in_a_row: int = 0
    trouble: tuple[str, str] | None = None
    last_error: str = ""
    last_run: float | None = None
    sealed_blocks: int = 0
    deleted: dict[str, int] = field(default_factory=dict)


class Maintainer:
    """Looks after a store, in a thread of its own or when asked. Thread-safe.

    Args:
        config: Settings.
        clock: For the ages of what is stored.
        store: Gives the open store, if there is one.
        on_damage: Called when damage was seen inside the file.
    """

    def __init__(
        self,
        config: PersistenceConfig,
        clock: Clock,
        store: Callable[[], SqlStore | None],
        on_damage: Callable[[], None],
    ) -> None:
        self.state = MaintenanceState()
        self._config = config
        self._clock = clock
        self._host_clock = SystemClock()
        self._store = store
        self._on_damage = on_damage
        self._sealer = Sealer(config)
        self._compactor = Compactor(config)
        self._lock = MaintenanceLock(config.storage_dir / "maintenance.lock")
        self._stop = threading.Event()
        self._retention_at = 0.0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="vllm-monitor-maintenance", daemon=True)
            self._thread.start()

    def close(self, timeout_seconds: float) -> None:
        """Stop after the block at hand; what is not done is done by the next process."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_seconds)
            if self._thread.is_alive():
                _LOG.error("maintenance of %s does not end; it was left alone", self._config.db_path)

    def run(self, *, seal_all: bool = False, wait_seconds: float, asked: bool = False) -> MaintenanceReport:
        """One step, here and now.

        Args:
            seal_all: Seal also what is not due.
            wait_seconds: How long to wait while another process is at it.
            asked: A person asked for retention.

        Raises:
            StoreUnavailableError: When there is no open store, or another process does not come to an end.
            StoreDamagedError: When a block did not come back as the rows it was made of.
        """
        store = self._store()
        if store is None:
            raise StoreUnavailableError(
                f"the store {self._config.db_path} is not open", hint="See health(); it is opened by itself."
            )
        try:
            with self._lock.held(wait_seconds) as is_ours:
                if not is_ours:
                    raise StoreUnavailableError(
                        f"another process has maintained {self._config.storage_dir} for {wait_seconds:g} seconds",
                        hint="Wait until it has finished; it does what you asked for as well.",
                    )
                return self._step(store, seal_all=seal_all, expire_now=True, asked=asked)
        except (*DATABASE_ERRORS, OSError) as error:
            raise StoreUnavailableError(
                f"maintenance of {self._config.db_path} failed: {cause_of(error)}",
                hint="Nothing is lost. Check the disk and permissions of storage_dir; it is tried again by itself.",
            ) from error

    def after_fork_in_child(self) -> None:
        """Leave the lock to the parent; this object is not used again."""
        self._lock.after_fork_in_child()

    def _step(self, store: SqlStore, *, seal_all: bool, expire_now: bool, asked: bool = False) -> MaintenanceReport:
        hand = ShortTransactions(store, self._stop.is_set)
        now, monotonic = self._clock.now(), self._clock.monotonic()
        sealed, compacted = Sealed(), Compacted()
        deleted: dict[str, int] = {}
        freed = 0
        failures: list[Exception] = []
        if store.seals:
            with _collected(failures):
                expired_ms = cutoff_ms(now, self._config.metrics_retention_days)
                sealed = self._sealer.seal(hand, monotonic, expired_ms=expired_ms, seal_all=seal_all)
            with _collected(failures):
                compacted = self._compactor.compact(hand, now)
        if expire_now:  # also when sealing failed: this is what makes room
            with _collected(failures):
                deleted = expire(
                    store,
                    self._config,
                    now,
                    monotonic_seconds=monotonic,
                    asked=asked,
                    should_stop=self._stop.is_set,
                )
                remove_orphans(store, self._config)
            with _collected(failures):
                is_rearranged = seal_all or bool(compacted.blocks + compacted.rollups + sum(deleted.values()))
                freed = shrink(store, self._config, everything=is_rearranged, should_stop=self._stop.is_set)
                self.state.trouble = retention_trouble(store, self._config)
        report = self._noted(now, sealed, compacted, deleted, freed, failed=bool(failures))
        if failures:
            raise failures[0]
        return report

    def _noted(
        self, now: float, sealed: Sealed, compacted: Compacted, deleted: dict[str, int], freed: int, *, failed: bool
    ) -> MaintenanceReport:
        state = self.state
        state.runs += 1
        if not failed:
            state.failures_in_a_row = 0
        state.last_run = now
        state.sealed_blocks += sealed.blocks
        for kind, number in deleted.items():
            if number:
                state.deleted[kind] = state.deleted.get(kind, 0) + number
        return MaintenanceReport(
            sealed_blocks=sealed.blocks,
            sealed_samples=sealed.samples,
            damaged_rows=sealed.damaged,
            joined_blocks=compacted.blocks,
            joined_rollups=compacted.rollups,
            deleted=deleted,
            freed_bytes=freed,
        )

    def _run(self) -> None:
        wait = self._config.maintenance_interval_seconds
        while not self._stop.wait(wait):
            try:
                self._try_step()
            except Exception as error:  # maintenance outlives every fault; it is reported
                self._note_failure(error)
                wait = min(wait * 2, max(_LONGEST_BACK_OFF_SECONDS, self._config.maintenance_interval_seconds))
            else:
                wait = self._config.maintenance_interval_seconds

    def _try_step(self) -> None:
        store = self._store()
        if store is None or not store.is_current():
            return
        with self._lock.held(0.0) as is_ours:
            if is_ours:  # otherwise another process does it
                now = self._host_clock.monotonic()
                expire_now = now >= self._retention_at
                if expire_now:
                    steps_seconds = _STEPS_BETWEEN_RETENTION * self._config.maintenance_interval_seconds
                    self._retention_at = now + min(_LONGEST_BETWEEN_RETENTION_SECONDS, steps_seconds)
                self._step(store, seal_all=False, expire_now=expire_now)

    def _note_failure(self, error: Exception) -> None:
        if self._stop.is_set():
            return  # the store was closed under the last step
        self.state.failures += 1
        self.state.failures_in_a_row += 1
        self.state.last_error = str(cause_of(error))
        if self.state.failures_in_a_row >= _FAILURES_WORTH_A_WORD:
            self.state.trouble = (
                f"maintenance failed {self.state.failures_in_a_row} times in a row: {self.state.last_error}",
                "Nothing is lost, but the store grows: check its disk; it is tried again by itself.",
            )
        if isinstance(error, (StoreUnavailableError, StoreDamagedError, *DATABASE_ERRORS)):
            _LOG.warning("maintenance of %s failed and is tried again: %s", self._config.db_path, cause_of(error))
        else:
            _LOG.error("maintenance of %s failed and is tried again", self._config.db_path, exc_info=error)
        if fault_of(error) is Fault.DAMAGED:
            self._on_damage()


@contextmanager
def _collected(failures: list[Exception]) -> Iterator[None]:
    """Note what goes wrong in one stage, so that the stages after it are not lost."""
    try:
        yield
    except Exception as error:  # raised again when the step has come to its end
        failures.append(error)
