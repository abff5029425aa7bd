"""The files of a store of the JSON backend, and who may write them."""

from __future__ import annotations

import fcntl
import logging
import os
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from vllm_monitor.errors import StoreUnavailableError
from vllm_monitor.persistence.json_backend.json_lines import LineFile, replace_file

__all__ = ["LineFiles", "OwnerLock"]

_LOG = logging.getLogger(__name__)
LOCK_FILE = "owner.lock"


class OwnerLock:
    """Makes this the one open store of a folder; the kernel drops the lock when its holder dies, however it dies.

    Args:
        folder: The folder of the store.

    Raises:
        StoreUnavailableError: When another store of this folder is open, in this or in another process.
        OSError: When the lock file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK_FILE
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._descriptor)
            raise StoreUnavailableError(
                f"the JSON store {folder} is open in process {owner}, and one process at a time may have it open",
                hint="End that process, or move the data to StorageBackend.HYBRID (export, then import).",
            ) from None
        except OSError:
            os.close(self._descriptor)
            raise
        _HELD.add(self)
        with suppress(OSError):  # who holds it is for people; on a full disk it goes unsaid
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give it back; calling it again does nothing."""
        if self in _HELD:
            _HELD.discard(self)
            os.close(self._descriptor)


_HELD: weakref.WeakSet[OwnerLock] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # A child that lived on with a copy would keep the lock after its parent; closing a copy does not unlock.
    for lock in list(_HELD):
        lock.release()


os.register_at_fork(after_in_child=_after_fork_in_child)


class LineFiles:
    """The append-only files by name. For one thread at a time, where nothing else is said.

    Args:
        folder: Where they are.
        durable: Whether what was appended must survive power loss.
    """

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self.folder = folder
        self._durable = durable
        self._files: dict[str, LineFile] = {}
        self._sizes_before: dict[str, int] = {}

    def append(self, groups: Mapping[str, Iterable[bytes]]) -> None:
        """Append lines to some files, all of them or none.

        Raises:
            OSError: When they could not be written.
        """
        self._sizes_before = {}
        try:
            for name, lines in groups.items():
                file = self._file(name)
                before = file.size
                file.append(lines, durable=self._durable)
                self._sizes_before[name] = before
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Cut off what the newest :meth:`append` has added."""
        for name, size in self._sizes_before.items():
            self._files[name].cut(size)
        self._sizes_before = {}

    def replace(self, name: str, lines: Iterable[bytes]) -> None:
        """Give a file other lines, atomically and durably.

        Raises:
            OSError: When it cannot be written; the old file is unharmed.
        """
        self._sizes_before.pop(name, None)
        if name in self._files:
            self._files.pop(name).close()
        replace_file(self.folder / name, lines)

    def size_bytes(self, name: str) -> int:
        """The size of a file; 0 when there is none. Any thread."""
        try:
            return (self.folder / name).stat().st_size
        except FileNotFoundError:
            return 0

    def is_current(self) -> bool:
        """Whether every file that was written is still in its place. Any thread."""
        files = self._files.copy()
        # One that is not the same any more may have been written anew by us meanwhile.
        return all(file.is_current() or self._files.get(name) is not file for name, file in files.items())

    def close(self) -> None:
        """Close them all."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _file(self, name: str) -> LineFile:
        if name not in self._files:
            self._files[name] = LineFile(self.folder / name)
        return self._files[name]
