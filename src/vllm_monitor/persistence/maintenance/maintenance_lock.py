"""The lock that makes one process at a time maintain a store."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm_monitor.clock import SystemClock

__all__ = ["MaintenanceLock"]

_POLL_SECONDS = 0.02


class MaintenanceLock:
    """Held by one thread of one process; the kernel drops it when that process dies. Thread-safe.

    Args:
        path: The lock file, made when first needed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread_lock = threading.Lock()
        self._descriptor: int | None = None

    @contextmanager
    def held(self, wait_seconds: float) -> Iterator[bool]:
        """Hold it; ``False`` when somebody else keeps it for longer than ``wait_seconds``.

        Raises:
            OSError: When the file cannot be made.
        """
        if not self._thread_lock.acquire(timeout=wait_seconds):
            yield False
            return
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            yield self._locked(self._descriptor, wait_seconds)
        finally:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                os.close(descriptor)
            self._thread_lock.release()

    def after_fork_in_child(self) -> None:
        """Close what was inherited, or the lock would outlive the parent's step."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _locked(self, descriptor: int, wait_seconds: float) -> bool:
        clock = SystemClock()
        deadline = clock.monotonic() + wait_seconds
        pause = threading.Event()
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if clock.monotonic() >= deadline:
                    return False
                pause.wait(_POLL_SECONDS)
            else:
                return True
