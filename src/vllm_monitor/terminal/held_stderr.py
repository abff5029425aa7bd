"""Keeps stray output off the full screen: warnings and tracebacks are held and shown afterwards."""

from __future__ import annotations

import io
import sys
import threading
from collections import deque
from typing import TextIO, cast

__all__ = ["HeldStderr"]

_LONGEST_LINE = 65_536


class HeldStderr(io.TextIOBase):
    """Stands in for ``sys.stderr`` while the alternate screen is up. Thread-safe, bounded.

    Without it, a warning of a library would scribble over the view and be overwritten half a second later.

    Args:
        max_lines: How many of the newest lines are kept.
    """

    def __init__(self, max_lines: int = 200) -> None:
        self._lock = threading.Lock()
        self._lines: deque[str] = deque(maxlen=max_lines)
        self._unfinished = ""
        self._forgotten = 0
        self._original: TextIO | None = None

    def hold(self) -> None:
        """Take the place of ``sys.stderr``, unless that is a file or pipe, which no screen can disturb."""
        if self._original is None and sys.stderr is not None and sys.stderr.isatty():
            self._original = sys.stderr
            sys.stderr = cast("TextIO", self)

    def release(self) -> None:
        """Give ``sys.stderr`` back and write to it what was held."""
        original, self._original = self._original, None
        if original is None:
            return
        if sys.stderr is self:
            sys.stderr = original
        with self._lock:
            held = [*self._lines, *filter(None, [self._unfinished])]
            forgotten = self._forgotten
            self._lines.clear()
            self._unfinished = ""
            self._forgotten = 0
        if forgotten:
            original.write(f"({forgotten} earlier lines were not kept)\n")
        original.writelines(f"{line}\n" for line in held)
        original.flush()

    @property
    def newest_line(self) -> str:
        """The last full line that was written, or nothing."""
        with self._lock:
            return self._lines[-1] if self._lines else ""

    def write(self, text: str, /) -> int:
        """Hold ``text``; called in place of the write of ``sys.stderr``."""
        with self._lock:
            *lines, rest = (self._unfinished + text).split("\n")
            self._unfinished = rest[-_LONGEST_LINE:]
            overflow = len(self._lines) + len(lines) - (self._lines.maxlen or 0)
            self._forgotten += max(0, overflow)
            self._lines.extend(lines)
        return len(text)

    def writable(self) -> bool:
        """Always."""
        return True
