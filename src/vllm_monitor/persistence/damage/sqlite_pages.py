"""The pages of an SQLite file with its log, read without SQLite, however damaged they are."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from vllm_monitor.persistence.damage.sqlite_log import LogImage, log_of, read_log

__all__ = ["PageFile", "PageView"]

_MAGIC = b"SQLite format 3\0"
_DEFAULT_PAGE_BYTES = 4096
_PAGE_SIZES = {**{1 << power: 1 << power for power in range(9, 16)}, 1: 1 << 16}
_LEAST_USABLE_BYTES = 480
_FREELIST = struct.Struct(">II")
_FREELIST_AT = 32


@dataclass(frozen=True, slots=True)
class PageView:
    """The pages of one state of the file: those of the log in front of those of the file.

    Args:
        page_bytes: Size of a page.
        usable_bytes: Size of a page less what is reserved at its end.
        page_count: Number of pages; they are numbered from 1.
        changed: The pages that the log replaces, for those who want only them.
    """

    page_bytes: int
    usable_bytes: int
    page_count: int
    changed: Mapping[int, int] = field(repr=False)
    _database: int | None
    _log: int | None

    def page(self, number: int) -> bytes | None:
        """A page; ``None`` when there is none with that number, or the disk cannot give it."""
        if not 1 <= number <= self.page_count:
            return None
        in_log = self.changed.get(number)
        descriptor = self._log if in_log is not None else self._database
        if descriptor is None:
            return None
        offset = (number - 1) * self.page_bytes if in_log is None else in_log
        try:
            data = os.pread(descriptor, self.page_bytes, offset)
        except OSError:
            return None  # a bad sector is one more damaged page
        return data if len(data) == self.page_bytes else None

    def free_pages(self) -> frozenset[int]:
        """The pages that hold nothing any more; empty when the list of them is damaged."""
        first = self.page(1)
        if first is None or not first.startswith(_MAGIC):
            return frozenset()
        trunk, expected = _FREELIST.unpack_from(first, _FREELIST_AT)
        found: set[int] = set()
        while trunk:
            data = self.page(trunk)
            if data is None or trunk in found:
                return frozenset()
            following, count = _FREELIST.unpack_from(data)
            if count > self.usable_bytes // 4 - 2:
                return frozenset()
            found.add(trunk)
            found.update(struct.unpack_from(f">{count}I", data, _FREELIST.size))
            trunk = following
        whole = len(found) == expected and all(1 < number <= self.page_count for number in found)
        return frozenset(found) if whole else frozenset()


class PageFile:
    """A database file and its log, opened for reading; either may be missing. Use it with ``with``.

    Args:
        path: The database file.

    Raises:
        OSError: When a file is there and cannot be read.
    """

    def __init__(self, path: Path) -> None:
        with ExitStack() as opened:
            self._database = _open(path, opened)
            self._log = _open(log_of(path), opened)
            self._opened = opened.pop_all()
        head = os.pread(self._database, 100, 0) if self._database is not None else b""
        page_bytes, reserved_bytes = _sizes_in(head)
        self._image: LogImage = read_log(log_of(path), page_bytes)
        self.page_bytes = page_bytes or self._image.page_bytes or _DEFAULT_PAGE_BYTES
        self.usable_bytes = self.page_bytes - reserved_bytes
        self._file_pages = os.fstat(self._database).st_size // self.page_bytes if self._database is not None else 0

    def views(self) -> Iterator[PageView]:
        """What SQLite would see, then (where its log is damaged) what lies behind that part of it."""
        image = self._image
        usable = image.page_bytes == self.page_bytes
        pages = image.pages if usable else {}
        count = image.database_pages if pages else self._file_pages
        yield self._view(pages, count)
        if usable and image.later_pages:
            yield self._view({**pages, **image.later_pages}, max(count, image.later_database_pages))

    @property
    def pages_behind_damage(self) -> frozenset[int]:
        """The pages that only the second of :meth:`views` has, or has otherwise."""
        return frozenset(self._image.later_pages)

    def _view(self, pages: Mapping[int, int], count: int) -> PageView:
        # A log that was cut may say less than the file has, or more; what cannot be read is no page.
        most = max([self._file_pages, *pages]) if pages else self._file_pages
        return PageView(self.page_bytes, self.usable_bytes, min(count, most) or most, pages, self._database, self._log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def _open(path: Path, opened: ExitStack) -> int | None:
    if not path.is_file():
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    opened.callback(os.close, descriptor)
    return descriptor


def _sizes_in(head: bytes) -> tuple[int, int]:
    """Bytes of a page (0 when the header does not say) and of those the reserved ones."""
    if not head.startswith(_MAGIC) or len(head) < 100:
        return 0, 0
    page_bytes = _PAGE_SIZES.get(int.from_bytes(head[16:18], "big"), 0)
    reserved = head[20]
    return page_bytes, reserved if page_bytes - reserved >= _LEAST_USABLE_BYTES else 0
