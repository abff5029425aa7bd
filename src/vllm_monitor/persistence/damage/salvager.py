"""The thread that salvages damaged stores in the background."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vllm_monitor.clock import Clock
from vllm_monitor.errors import StorageError
from vllm_monitor.persistence.config import PersistenceConfig, StorageBackend
from vllm_monitor.persistence.damage.salvage import SalvageReport, salvage_file
from vllm_monitor.persistence.damage.set_aside import waiting_files
from vllm_monitor.persistence.sqlite_file import DATABASE_ERRORS, cause_of

__all__ = ["Salvager"]

_LOG = logging.getLogger(__name__)
_LOCK_FILE = "salvage.lock"
_SETTLE_SECONDS = 1.0
"""Other processes look at least this often whether the file they write to was set aside."""
_FIRST_RETRY_SECONDS = 5.0
_LONGEST_RETRY_SECONDS = 300.0
_FAULTS = (*DATABASE_ERRORS, OSError, StorageError, sqlite3.Error)


class _StoppedError(Exception):
    """The manager is being closed."""


class Salvager:
    """Salvages what was set aside, one process of a store at a time. Thread-safe.

    Args:
        config: Settings of the store.
        clock: For the times that are stored.
        on_done: Called with each report, from the thread of the salvager.
        threaded: ``False`` makes :meth:`wake` do the work before it returns.
    """

    def __init__(
        self, config: PersistenceConfig, clock: Clock, on_done: Callable[[SalvageReport], None], *, threaded: bool
    ) -> None:
        self.reports: tuple[SalvageReport, ...] = ()
        self.last_error = ""
        self._config = config
        self._clock = clock
        self._on_done = on_done
        self._threaded = threaded
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._again = False
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        """Whether something is being salvaged, or waits for it."""
        return self._thread is not None

    def outlook(self) -> str:
        """What became, or will become, of what was set aside; for a person."""
        if self._config.backend is StorageBackend.JSON:
            return "All other lines are kept and in use; the file is yours to keep or remove."
        if self.is_running:
            return self.last_error or "What can be read of it is being recovered; look again in a while."
        if self.reports:
            return f"Recovered from it: {self.reports[-1].summary()}; the file is kept."
        return self.last_error or "The file is kept; vllm-monitor check says how the new store is."

    def wake(self) -> None:
        """Look whether there is something to salvage; the work itself is done by a thread."""
        # The lines of the JSON backend are its truth: its database is only made again from them.
        if self._config.backend is StorageBackend.JSON or self._stop.is_set() or not waiting_files(self._config):
            return
        if not self._threaded:
            self._salvage_all()
            return
        with self._lock:
            self._again = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="vllm-monitor-salvage", daemon=True)
                self._thread.start()

    def close(self, timeout_seconds: float) -> None:
        """Stop; what is not done is done at the next start."""
        self._stop.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_seconds)

    def _run(self) -> None:
        pause = _FIRST_RETRY_SECONDS
        self._stop.wait(_SETTLE_SECONDS)
        while not self._stop.is_set():
            self._again = False
            if not self._salvage_all():
                self._stop.wait(pause)
                pause = min(pause * 2, _LONGEST_RETRY_SECONDS)
                continue
            with self._lock:
                if not self._again:
                    self._thread = None
                    return

    def _salvage_all(self) -> bool:
        """Whether nothing is left to do for us."""
        with self._locked() as is_ours:
            if not is_ours:
                return not waiting_files(self._config)
            for damaged in waiting_files(self._config):
                try:
                    report = salvage_file(damaged, self._config, self._clock.now, advance=self._advance)
                except _StoppedError:
                    return False
                except _FAULTS as error:
                    self.last_error = f"{damaged.name} could not be salvaged: {cause_of(error)}"
                    _LOG.warning("%s; it is tried again", self.last_error)
                    return False
                self.last_error = ""
                self.reports += (report,)
                _LOG.warning("of the damaged store %s was recovered: %s", damaged, report.summary())
                self._on_done(report)
        return True

    def _advance(self, _done: int, _total: int, _what: str) -> None:
        if self._stop.wait(0.0005 if self._threaded else 0):  # also lets others have the processor
            raise _StoppedError

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        try:
            descriptor = os.open(self._config.storage_dir / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self.last_error = f"nothing can be salvaged: {error}"
            yield False
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile has it open, too
            os.close(descriptor)
