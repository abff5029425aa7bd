"""Opening files that may turn out to be none: a pipe in the place of one would keep its reader waiting for ever."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from vllm_monitor.errors import StoreUnavailableError

__all__ = ["open_plain", "read_plain", "refuse_strange_companions"]

_COMPANIONS = ("-wal", "-shm", "-journal")


def open_plain(path: Path, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
    """A descriptor of a file, opened without ever waiting for a pipe or a device.

    Args:
        path: The file; links are followed.
        flags: As for ``os.open``.
        mode: Permissions of a file that is made.

    Raises:
        OSError: When it cannot be opened, or is no plain file.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "This is no plain file", str(path))
    return descriptor


def read_plain(path: Path) -> bytes:
    """The whole content of a file.

    Raises:
        OSError: When it cannot be read, or is no plain file.
    """
    with os.fdopen(open_plain(path), "rb") as file:
        return file.read()


def refuse_strange_companions(path: Path) -> None:
    """Look at what lies beside a database before SQLite opens it, which would wait for a pipe.

    Raises:
        StoreUnavailableError: When its log, its shared memory or its journal is no plain file.
    """
    for suffix in _COMPANIONS:
        companion = path.with_name(f"{path.name}{suffix}")
        if os.path.lexists(companion) and not companion.is_file():
            raise StoreUnavailableError(
                f"{companion} is no plain file", hint="Move it away; the store is opened by itself then."
            )
