"""Locks between processes that the kernel drops when their holder dies, however it dies."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vllm_monitor.clock import SystemClock
from vllm_monitor.errors import StoreUnavailableError
from vllm_monitor.persistence.private_folder import make_private_folder

__all__ = ["Leases", "locked"]

_POLL_SECONDS = 0.02


def _open_private(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


@contextmanager
def locked(path: Path, timeout_seconds: float) -> Iterator[None]:
    """Hold the exclusive lock of a file, which is made when it is missing.

    Raises:
        StoreUnavailableError: When another process keeps it for longer than ``timeout_seconds``.
        OSError: When the file cannot be made.
    """
    clock = SystemClock()
    pause = threading.Event()
    descriptor = _open_private(path)
    process = os.getpid()
    try:
        deadline = clock.monotonic() + timeout_seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if clock.monotonic() > deadline:
                    raise StoreUnavailableError(
                        f"{path} is locked by another process",
                        hint="Wait until it has finished with the store; the lock ends with that process.",
                    ) from None
            pause.wait(_POLL_SECONDS)
        yield
    finally:
        if os.getpid() == process:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile has it open, too
        os.close(descriptor)


class Leases:
    """Which targets this process watches into a store: one process per target. Thread-safe.

    Args:
        folder: Where the lock files are; made when first needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}

    def acquire(self, target: str) -> bool:
        """Take the lease of a target; ``False`` when another process (or another manager) has it.

        Raises:
            OSError: When the lock file cannot be made.
        """
        with self._lock:
            if target in self._held:
                return True
            make_private_folder(self._folder)
            name = hashlib.blake2b(target.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
            descriptor = _open_private(self._folder / f"{name}.lock")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            except OSError:
                os.close(descriptor)
                raise
            self._held[target] = descriptor
            with suppress(OSError):  # whose it is is for people; on a full disk it goes unsaid
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()} {target!r}\n".encode("utf-8", "backslashreplace"), 0)
            return True

    def release(self, target: str) -> None:
        """Give the lease back; nothing happens when it is not held. The file stays: removing it would race."""
        with self._lock:
            descriptor = self._held.pop(target, None)
            if descriptor is not None:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
                os.close(descriptor)

    def release_all(self) -> None:
        """Give all leases back."""
        for target in list(self._held):
            self.release(target)

    def after_fork_in_child(self) -> None:
        """Close what was inherited: the leases stay with the parent (closing a copy does not unlock)."""
        self._lock = threading.Lock()
        held, self._held = self._held, {}
        for descriptor in held.values():
            os.close(descriptor)
