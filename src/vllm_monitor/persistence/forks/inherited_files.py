"""Files that were open in the parent when this process was forked: SQLite must not touch them here.

SQLite notes in memory which locks its process has on a file. A child inherits the notes but not the locks: it
would write without any, and the file would be damaged. The descriptors tell which files are concerned.
"""

from __future__ import annotations

import ctypes
import os
import stat
from pathlib import Path

from vllm_monitor.errors import StoreUnavailableError

__all__ = ["check_not_inherited", "inherited_fault", "keep_for_ever", "note_inherited_files"]

_FileId = tuple[int, int]
_inherited: dict[_FileId, int] = {}
_kept: list[object] = []
_DESCRIPTOR_FOLDERS = (Path("/proc/self/fd"), Path("/dev/fd"))
_MOST_DESCRIPTORS = 1 << 16


def note_inherited_files() -> None:
    """In a child, before it opens anything: remember what its parent had open."""
    _inherited.clear()
    for descriptor in _open_descriptors():
        file_id = _file_id(descriptor)
        if file_id is not None:
            _inherited[file_id] = descriptor


def inherited_fault(path: Path) -> StoreUnavailableError | None:
    """Why a database file cannot be opened in this process; ``None`` when it can."""
    file_id = _file_id(path) if _inherited else None
    # The number of a file that is gone may be given to another one; SQLite's descriptors are never closed here.
    if file_id is None or file_id not in _inherited or _file_id(_inherited[file_id]) != file_id:
        return None
    return StoreUnavailableError(
        f"{path} cannot be used here: this process was forked while its store was in use",
        hint="Start such a process with exec (subprocess, or multiprocessing with 'spawn'), or fork before opening it.",
    )


def check_not_inherited(path: Path) -> None:
    """Refuse a database file that was in use when this process was forked.

    Raises:
        StoreUnavailableError: When it was.
    """
    fault = inherited_fault(path)
    if fault is not None:
        raise fault


def keep_for_ever(thing: object) -> None:
    """Never let go of something inherited, not even at the end: closing a connection here would harm the parent."""
    if not _kept:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(_kept))  # the interpreter tears down what it can when it ends
    _kept.append(thing)


def _open_descriptors() -> list[int]:
    for folder in _DESCRIPTOR_FOLDERS:
        try:
            return [int(entry.name) for entry in folder.iterdir()]
        except OSError:
            continue  # not this system; every number is tried when there is no such folder at all
    return list(range(_MOST_DESCRIPTORS))


def _file_id(file: int | Path) -> _FileId | None:
    try:
        found = os.fstat(file) if isinstance(file, int) else file.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None
