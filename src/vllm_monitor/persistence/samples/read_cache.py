"""What was decoded of sealed blocks and roll-ups, kept for the next question: bounded by bytes, oldest use first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

__all__ = ["ReadCache"]

_MOST_BYTES = 32 << 20
_BYTES_PER_ENTRY = 400  # of Python objects around the arrays


class ReadCache:
    """Decoded parts of rows that never change. Thread-safe.

    A key must name the content and not only its place (row number and checksum): numbers are given again when the
    newest row was deleted. Whoever takes something out must not change it.

    Args:
        most_bytes: What is kept at most.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable) -> Any:
        """What was put there, or ``None``."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return found[0]

    def put(self, key: Hashable, value: object, size_bytes: int) -> None:
        """Keep something that takes so many bytes; too much of it is not kept at all."""
        size_bytes += _BYTES_PER_ENTRY
        if size_bytes > self._most_bytes // 4:
            return
        with self._lock:
            before = self._kept.pop(key, None)
            self._kept[key] = value, size_bytes
            self._bytes += size_bytes - (0 if before is None else before[1])
            while self._bytes > self._most_bytes:
                _, (_, freed) = self._kept.popitem(last=False)
                self._bytes -= freed

    def __len__(self) -> int:
        return len(self._kept)
