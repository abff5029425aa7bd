"""Following the server's log file through rotation and truncation."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from vllm_monitor.clock import Clock
from vllm_monitor.records import LogObservation

__all__ = ["MAX_LINE_BYTES", "LogTail"]

MAX_LINE_BYTES = 65_536
"""A longer line is cut here and its rest dropped."""

_MAX_BYTES_PER_POLL = 4 * 2**20
_CHUNK_BYTES = 262_144


class LogTail:
    """Delivers the lines that were added to a log since the last look. For one thread at a time.

    Args:
        path: The log; it need not exist yet.
        target: The server that the lines are about.
        clock: Where time comes from.
        from_start: Deliver what an existing file holds already; otherwise begin at its end.
    """

    def __init__(self, path: Path, target: str, clock: Clock, *, from_start: bool = False) -> None:
        self._path = path
        self._target = target
        self._clock = clock
        self._file: BinaryIO | None = None
        self._position = 0
        self._pending = b""
        self._dropping = False
        self.note = ""
        """Why the log cannot be read; empty while it can, or while it does not exist yet."""
        if not from_start:
            self._open(at_end=True)

    def poll(self) -> list[LogObservation]:
        """The complete lines since the last call, oldest first, at most a few MiB at a time."""
        lines: list[bytes] = []
        budget = _MAX_BYTES_PER_POLL
        if self._file is None:
            self._open(at_end=False)
        while self._file is not None and budget > 0:
            chunk = self._read(min(_CHUNK_BYTES, budget))
            budget -= len(chunk)
            if chunk:
                lines.extend(self._split(chunk))
            elif not self._was_replaced():
                break
            else:
                # What the old file still held has been read; a line it left unfinished will never end.
                if self._pending:
                    lines.append(self._pending)
                self._close()
                self._open(at_end=False)
        now = self._clock.now()
        return [
            LogObservation(target=self._target, timestamp=now, line=line.rstrip(b"\r").decode("utf-8", "replace"))
            for line in lines
        ]

    def close(self) -> None:
        """Let the file go. Safe to call twice."""
        self._close()

    def _open(self, *, at_end: bool) -> None:
        try:
            if not stat.S_ISREG(self._path.stat().st_mode):
                # Opening a pipe would wait for its writer.
                self.note = f"the log {self._path} is not a regular file"
                return
            file = self._path.open("rb", buffering=0)
        except FileNotFoundError:
            self.note = ""
            return
        except OSError as error:
            self.note = f"the log {self._path} cannot be read: {error.strerror or error}"
            return
        self.note = ""
        self._file = file
        self._position = file.seek(0, os.SEEK_END) if at_end else 0

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._position, self._pending, self._dropping = None, 0, b"", False

    def _read(self, size: int) -> bytes:
        if self._file is None:
            return b""
        try:
            if os.fstat(self._file.fileno()).st_size < self._position:
                # Truncated in place (copytruncate): what is there now is new.
                self._file.seek(0)
                self._position, self._pending, self._dropping = 0, b"", False
            chunk = self._file.read(size) or b""
        except OSError as error:
            self.note = f"the log {self._path} cannot be read: {error.strerror or error}"
            return b""
        self._position += len(chunk)
        return chunk

    def _was_replaced(self) -> bool:
        """Whether the path now names another file (rotation by renaming)."""
        if self._file is None:
            return False
        try:
            there, ours = self._path.stat(), os.fstat(self._file.fileno())
        except OSError:
            return False
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def _split(self, chunk: bytes) -> list[bytes]:
        *complete, rest = (self._pending + chunk).split(b"\n")
        if complete and self._dropping:
            complete.pop(0)
            self._dropping = False
        if self._dropping:
            rest = b""
        elif len(rest) > MAX_LINE_BYTES:
            complete.append(rest)
            rest, self._dropping = b"", True
        self._pending = rest
        return [line[:MAX_LINE_BYTES] for line in complete]
