"""Whole files, written at once or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vllm_monitor.errors import StoreUnavailableError
from vllm_monitor.persistence.file_locks import locked

__all__ = ["TEMPORARY_SUFFIX", "put_aside", "retryable_lock", "write_whole"]

TEMPORARY_SUFFIX = ".new"
"""What a file that is not complete yet ends with."""


def write_whole(path: Path, data: bytes, *, keep_old_as: Path | None = None) -> None:
    """Put a file with this content in the place of one, atomically and durably; mode 0600.

    Args:
        path: The file; its folder exists. Nobody else may write it at the same time.
        data: The whole content.
        keep_old_as: What the file that is replaced is kept as.

    Raises:
        OSError: When it cannot be written; the old file is unharmed.
    """
    temporary = path.with_name(f"{path.name}{TEMPORARY_SUFFIX}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if keep_old_as is not None:
            _keep(path, keep_old_as)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def put_aside(path: Path, stamp: str) -> Path:
    """A name beside ``path`` that is free: ``NAME.damaged-STAMP``, with a number when that is taken."""
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    number = 1
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{stamp}-{number}")
    return aside


LONGEST_LOCK_WAIT_SECONDS = 0.5
"""The writer waits inside a transaction, so not for long; what waits is tried again."""


@contextmanager
def retryable_lock(path: Path, timeout_seconds: float) -> Iterator[None]:
    """As ``locked``, but its timeout is an ``OSError``, so that the writer holds what waits and tries it again.

    Raises:
        TimeoutError: When another process keeps it for longer than ``timeout_seconds``.
        OSError: When the file cannot be made.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path, timeout_seconds))
        except StoreUnavailableError as error:
            raise TimeoutError(error.message) from error
        yield


def _keep(path: Path, other: Path) -> None:
    try:
        other.hardlink_to(path)  # the old file stays where it is until the new one takes its place
    except OSError:
        path.rename(other)  # a file system without hard links


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
