"""A folder that appears when it is complete: half of an export is never mistaken for one."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm_monitor.errors import ArchiveError
from vllm_monitor.persistence.private_folder import make_private_folder
from vllm_monitor.persistence.sqlite_file import DATABASE_ERRORS, cause_of

__all__ = ["whole_folder"]

_UNFINISHED, _REPLACED = ".part", ".old"


@contextmanager
def whole_folder(folder: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """A temporary folder to fill, which takes the place of ``folder`` at the end of the block, private and durable.

    An exception leaves everything as it was. What an earlier, killed process left unfinished is removed.

    Args:
        folder: What to make.
        check: Raises when ``folder`` must not be replaced; asked at the beginning and at the end.

    Raises:
        ArchiveError: When it cannot be written.
    """
    check(folder)
    try:
        make_private_folder(folder.parent)
        _remove_remains(folder, _UNFINISHED)
        work = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}{_UNFINISHED}")
        work.mkdir(mode=0o700)
        descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # says that somebody is at work here
            yield work
            _make_durable(work)
            check(folder)
            _put_in_place(work, folder)
        finally:
            os.close(descriptor)
            shutil.rmtree(work, ignore_errors=True)
    except (OSError, *DATABASE_ERRORS) as error:
        raise ArchiveError(
            f"{folder} cannot be written: {cause_of(error)}",
            hint="Check the permissions of the folder above it, and that its disk is not full.",
        ) from error


def _put_in_place(work: Path, folder: Path) -> None:
    if folder.exists():
        folder.rename(work.with_suffix(_REPLACED))
    work.rename(folder)
    _sync(folder.parent)
    _remove_remains(folder, _REPLACED)


def _make_durable(work: Path) -> None:
    for path in [*work.rglob("*"), work]:
        path.chmod(0o700 if path.is_dir() else 0o600)
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_remains(folder: Path, suffix: str) -> None:
    for remains in folder.parent.glob(f".{glob.escape(folder.name)}.*{suffix}"):
        if remains.is_symlink() or not remains.is_dir():
            continue
        descriptor = os.open(remains, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(remains, ignore_errors=True)
        except BlockingIOError:
            continue  # another process is at work on the same folder
        finally:
            os.close(descriptor)
