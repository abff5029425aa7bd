"""The newest version of a file that could be read, kept beside it for the day when it cannot."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from vllm_monitor.persistence.plain_file import read_plain
from vllm_monitor.persistence.private_file import write_whole

__all__ = ["LAST_GOOD_SUFFIX", "LastGood"]

_LOG = logging.getLogger(__name__)
LAST_GOOD_SUFFIX = ".good"


class LastGood:
    """Keeps ``.NAME.good`` beside the file ``NAME``; in memory alone where that cannot be written.

    Args:
        file: The file that people and programs change.
    """

    def __init__(self, file: Path) -> None:
        self.path = file.with_name(f".{file.name}{LAST_GOOD_SUFFIX}")
        self._data: bytes | None = None
        self._is_kept = False
        self._failed = False

    def has(self, data: bytes) -> bool:
        """Whether this version is the one that is kept, as far as this process knows."""
        return self._is_kept and self._data == data

    def keep(self, data: bytes) -> None:
        """Keep a version that could be read. The caller holds the lock of the documents.

        Where it cannot be written it is held in memory, and logged: what it is a copy of is safe.
        """
        try:
            if self._stored() != data:
                write_whole(self.path, data)
        except OSError as error:
            self.hold(data, error)
        else:
            self._data, self._is_kept, self._failed = data, True, False

    def hold(self, data: bytes, error: OSError) -> None:
        """Keep a version in memory, because it cannot be written."""
        self._data, self._is_kept = data, False
        if not self._failed:
            self._failed = True
            _LOG.warning("%s cannot be kept, it is held in memory: %s", self.path, error)

    def versions(self) -> Iterator[bytes]:
        """What is kept, best first; the second is for when the first turns out to be damaged."""
        held = self._data
        if held is not None and not self._is_kept:
            yield held
        try:
            stored = self._stored()
        except OSError as error:
            _LOG.warning("%s cannot be read: %s", self.path, error)
            stored = None
        if stored is not None:
            yield stored
        if held is not None and self._is_kept and held != stored:
            yield held

    def _stored(self) -> bytes | None:
        try:
            return read_plain(self.path)
        except FileNotFoundError:
            return None
