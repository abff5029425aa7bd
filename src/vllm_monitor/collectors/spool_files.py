"""The files of spools: which there are, what they begin with, and what is in them.

Only regular files are opened, and of each the owner is looked at after it was opened: what lies in a folder of files
may be another user's, or a link to something else.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Header", "SpoolFile", "list_files", "read_from", "read_header"]

_FILE = re.compile(r"(?P<spool>[0-9]{1,10}-[0-9]{1,20}-[0-9]{1,6})\.(?P<segment>[0-9]{6,9})\.spool")
_FORMAT = 1
_MOST_HEADER_BYTES = 1 << 16
_LASTING = frozenset({errno.ENOENT, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO})
"""Errors that another try does not mend; a disk or a process that is out of something may get over it."""


@dataclass(frozen=True, slots=True)
class SpoolFile:
    """One segment of a spool.

    Args:
        path: Where it is.
        spool: The name of its spool; the process id of its writer, when that began, and a number.
        segment: Its number; the spool goes on in the next.
    """

    path: Path
    spool: str
    segment: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file begins with.

    Args:
        values: What it says; empty when it is none of ours, or not of a user whom we believe.
        owner: Whose file it is.
    """

    values: dict[str, Any]
    owner: int


def list_files(folder: Path) -> list[SpoolFile]:
    """The segments in a folder; none when there is no such folder, or it is not for us.

    Raises:
        OSError: When it could not be looked at this time.
    """
    try:
        with os.scandir(folder) as entries:
            matches = [(Path(entry.path), _FILE.fullmatch(entry.name)) for entry in entries]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    return [SpoolFile(path, match["spool"], int(match["segment"])) for path, match in matches if match is not None]


def read_header(path: Path, users: Collection[int]) -> Header | None:
    """The first line of a file; ``None`` when it is not whole yet.

    Args:
        path: The file.
        users: Whose files are believed.

    Raises:
        OSError: When it could not be read this time.
    """
    try:
        descriptor = _open(path)
    except OSError as error:
        if error.errno in _LASTING:
            return Header({}, -1)
        raise
    try:
        seen = os.fstat(descriptor)
        if not stat.S_ISREG(seen.st_mode) or seen.st_uid not in users:
            return Header({}, seen.st_uid)
        text, has_end, _ = os.read(descriptor, _MOST_HEADER_BYTES).partition(b"\n")
    finally:
        os.close(descriptor)
    if not has_end and len(text) < _MOST_HEADER_BYTES:
        return None
    try:
        values = json.loads(text) if has_end else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        values = {}
    return Header(values, seen.st_uid)


def read_from(path: Path, offset: int, most: int, owner: int) -> bytes:
    """What a file holds from an offset on; nothing when it is gone, no regular file, or another user's.

    Raises:
        OSError: When it could not be read this time.
    """
    try:
        descriptor = _open(path)
    except OSError as error:
        if error.errno in _LASTING:
            return b""
        raise
    try:
        seen = os.fstat(descriptor)
        if not stat.S_ISREG(seen.st_mode) or seen.st_uid != owner:
            return b""
        return os.pread(descriptor, most, offset)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
