"""One JSON file of documents, which programs replace as a whole and people edit.

A file that cannot be read is somebody's half-finished work: it is left alone, and the last good version is in force.
The next save joins the two, entry by entry, and keeps the file as ``NAME.damaged-TIME``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vllm_monitor.clock import SystemClock
from vllm_monitor.errors import StoreDamagedError, StoreTooNewError
from vllm_monitor.persistence.codecs.text_column import to_text_column
from vllm_monitor.persistence.documents.document_text import (
    DocumentText,
    parse_document,
    salvage_document,
    write_document,
)
from vllm_monitor.persistence.documents.documents import DocumentKind, Entry
from vllm_monitor.persistence.documents.last_good import LastGood
from vllm_monitor.persistence.plain_file import read_plain
from vllm_monitor.persistence.private_file import put_aside, write_whole

__all__ = ["DocumentFile", "DocumentTrouble"]

_LOG = logging.getLogger(__name__)
_SETTLED_SECONDS = 1.0
"""A broken file that is younger may be one that an editor is still writing."""
_LOOKS = 4
_LOOK_AGAIN_SECONDS = 0.1

Lock = Callable[[float], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class DocumentTrouble:
    """Why a file of documents cannot be read.

    Args:
        path: The file.
        message: What is wrong, at which line and column, and what is in force meanwhile.
        hint: What to do about it.
        mark: Names this trouble of this file, in every process that sees it.
    """

    path: Path
    message: str
    hint: str
    mark: str


class DocumentFile:
    """Reads and replaces one file. Thread-safe, as far as ``change`` is called under the lock.

    Args:
        kind: Whose entries it holds.
        path: The file.
        lock: The lock of all documents of the store, by how many seconds to wait for it; its timeout is an OSError.
    """

    def __init__(self, kind: DocumentKind[Any], path: Path, lock: Lock) -> None:
        self.path = path
        self.trouble: DocumentTrouble | None = None
        self._kind = kind
        self._lock = lock
        self._clock = SystemClock()
        self._good = LastGood(path)
        self._noticed: tuple[int, int, int] | None = None

    def read(self) -> DocumentText | None:
        """What is in force; ``None`` when there is no file.

        Raises:
            OSError: When the file cannot be read now.
            StoreTooNewError: When a newer version wrote it.
        """
        try:
            text = self._parse()
        except StoreDamagedError as error:
            return self._in_force(error)
        self._mended()
        return text

    def peek(self) -> DocumentText | None:
        """As :meth:`read`, at once and without a word: somebody may be writing the file just now.

        Raises:
            OSError: When the file cannot be read now.
            StoreTooNewError: When a newer version wrote it.
        """
        try:
            return parse_document(self._kind, read_plain(self.path), str(self.path))
        except FileNotFoundError:
            return None
        except (StoreDamagedError, IsADirectoryError):
            return self.last_good() or self._salvaged()

    def notice(self) -> None:
        """See whether the file was changed, and whether it can still be read; costs one ``stat`` when it was not."""
        try:
            status = self.path.stat()
        except OSError:
            self._noticed = None
            self._mended()
            return
        signature = (status.st_mtime_ns, status.st_size, status.st_ino)
        if signature == self._noticed or not self._is_settled(status.st_mtime):
            return
        self._noticed = signature
        try:
            self.read()
        except (OSError, StoreTooNewError) as error:
            _LOG.warning("%s cannot be looked at: %s", self.path, error)

    def change(self, make: Callable[[DocumentText | None], Mapping[str, Entry]]) -> tuple[Path, int] | None:
        """Write the entries that ``make`` makes of what is there; the caller holds the lock.

        Returns:
            What a file that could not be read was kept as, and how many entries the new one has.

        Raises:
            OSError: When it cannot be written now; nothing was.
            StoreTooNewError: When a newer version wrote it.
        """
        try:
            text = self._parse(locked=True)
        except StoreDamagedError as error:
            return self._replace_broken(make, error)
        changed = make(text)
        if changed:
            self._write(_with(text or DocumentText(), changed))
        return None

    def last_good(self) -> DocumentText | None:
        """The last version that could be read; ``None`` when none was kept, or it is damaged too.

        Raises:
            StoreTooNewError: When a newer version wrote it.
        """
        for data in self._good.versions():
            try:
                return parse_document(self._kind, data, str(self._good.path))
            except StoreDamagedError as error:
                _LOG.error("%s", error)
        return None

    def _parse(self, *, locked: bool = False) -> DocumentText | None:
        """What the file says; ``None`` when there is none."""
        for look in range(_LOOKS):
            try:
                data = read_plain(self.path)
                text = parse_document(self._kind, data, str(self.path))
            except FileNotFoundError:
                return None
            except IsADirectoryError as error:
                raise StoreDamagedError(f"{self.path} is a folder", hint="Remove it.") from error
            except StoreDamagedError:
                if look == _LOOKS - 1 or self._is_settled(self.path.stat().st_mtime):
                    raise
            else:
                self._remember(data, locked=locked)
                return text
            threading.Event().wait(_LOOK_AGAIN_SECONDS)
        return None

    def _is_settled(self, modified_at: float) -> bool:
        return not 0 <= self._clock.now() - modified_at <= _SETTLED_SECONDS

    def _remember(self, data: bytes, *, locked: bool) -> None:
        """Keep what could be read: somebody edited it by hand, or wrote it before there were last good versions."""
        if self._good.has(data):
            return
        if locked:
            self._good.keep(data)
            return
        try:
            with self._lock(0.0):
                if read_plain(self.path) == data:  # else it is not the newest any more
                    self._good.keep(data)
        except TimeoutError:
            _LOG.debug("%s is being written; the next reader keeps it", self.path)
        except OSError as error:
            self._good.hold(data, error)

    def _in_force(self, error: StoreDamagedError) -> DocumentText:
        """What counts while the file cannot be read."""
        text = self.last_good()
        if text is not None:
            meanwhile = "the last good version is in force"
        else:
            text = self._salvaged()
            meanwhile = f"no good version is kept, and {len(text.entries)} entries that can be read in it are in force"
        before = self.trouble
        self.trouble = DocumentTrouble(
            self.path,
            f"{error.message}; {meanwhile}",
            "Mend it there, or just before: it is read again by itself, and left alone until something is saved.",
            self._mark(),
        )
        if before is None or before.message != self.trouble.message:
            _LOG.error("%s", self.trouble.message)
        return dataclasses.replace(text, salvaged=True)  # an entry that is not there may only be unreadable

    def _mark(self) -> str:
        try:
            status = self.path.stat()
        except OSError:
            return self._kind.name
        told = f"{self._kind.name} {status.st_mtime_ns} {status.st_size} {status.st_ino}"
        return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()

    def _mended(self) -> None:
        if self.trouble is not None:
            self.trouble = None
            _LOG.warning("%s can be read again", self.path)

    def _replace_broken(
        self, make: Callable[[DocumentText | None], Mapping[str, Entry]], error: StoreDamagedError
    ) -> tuple[Path, int]:
        good, salvaged = self.last_good(), self._salvaged()
        text = salvaged if good is None else _joined(good, salvaged)
        changed = make(dataclasses.replace(text, salvaged=True))
        whole = _with(text, changed)
        stamp = datetime.fromtimestamp(self._clock.now(), UTC).strftime("%Y%m%dT%H%M%S")
        aside = put_aside(self.path, stamp)
        self._write(whole, keep_old_as=aside)
        _LOG.error("%s; it was kept as %s, %d entries are in the new one", error.message, aside, len(whole.entries))
        self.trouble = None
        return aside, len(whole.entries)

    def _write(self, text: DocumentText, *, keep_old_as: Path | None = None) -> None:
        data = write_document(self._kind, text)
        write_whole(self.path, data, keep_old_as=keep_old_as)
        self._good.keep(data)

    def _salvaged(self) -> DocumentText:
        try:
            return salvage_document(self._kind, read_plain(self.path))
        except (FileNotFoundError, IsADirectoryError):
            return DocumentText(salvaged=True)


def _with(text: DocumentText, changed: Mapping[str, Entry]) -> DocumentText:
    unreadable = {key: tree for key, tree in text.unreadable.items() if key not in map(to_text_column, changed)}
    return DocumentText({**text.entries, **changed}, unreadable, text.extra, text.salvaged)


def _joined(good: DocumentText, broken: DocumentText) -> DocumentText:
    """The last good version with what can be read in a broken file, which is newer; revisions never go back."""
    entries = dict(good.entries)
    for name, entry in broken.entries.items():
        old = good.entries.get(name)
        if old is not None and (old.deleted, dict(old.fields)) != (entry.deleted, dict(entry.fields)):
            entry = dataclasses.replace(entry, revision=max(entry.revision, old.revision + 1))  # noqa: PLW2901  # the same entry
        entries[name] = entry
    return _with(dataclasses.replace(good, unreadable={**good.unreadable, **broken.unreadable}), entries)
