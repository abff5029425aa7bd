"""The write-ahead log of an SQLite file, read without SQLite: also what lies behind a damaged part of it.

SQLite reads a log up to the first frame that does not continue the chain of checksums, and forgets all that
comes after, without a word. Each frame carries the checksum that the next one continues, so the frames behind a
damaged part can still be told from garbage.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.persistence.plain_file import open_plain

__all__ = ["LogImage", "log_is_damaged", "log_of", "read_log"]

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_MAGIC = 0x377F0682  # its lowest bit says that the words of checksums are big-endian
_DEFAULT_PAGE_BYTES = 4096
_PAGE_SIZES = frozenset(1 << power for power in range(9, 17))
_WORD = 0xFFFFFFFF

Checksum = tuple[int, int]


@dataclass(slots=True)
class LogImage:
    """The pages of a log, as page number to the offset of the newest image in its file.

    Args:
        page_bytes: Size of a page; 0 when the log says nothing.
        pages: Pages of the transactions that SQLite would still find.
        database_pages: Size of the database after the last of those; 0 when there is none.
        later_pages: Pages of committed transactions that lie behind a damaged part.
        later_database_pages: Size of the database after the last of those; 0 when there is none.
        broken_at: Offset of the first frame that SQLite would not find any more, and the salts it should have.
    """

    page_bytes: int = 0
    pages: dict[int, int] = field(default_factory=dict)
    database_pages: int = 0
    later_pages: dict[int, int] = field(default_factory=dict)
    later_database_pages: int = 0
    broken_at: tuple[int, tuple[int, int] | None] | None = None

    @property
    def is_damaged(self) -> bool:
        """Whether committed transactions lie behind a damaged part, where SQLite does not see them."""
        return bool(self.later_pages)


class _Frame(NamedTuple):
    page: int
    database_pages: int
    salts: tuple[int, int]
    checksum: Checksum
    offset: int
    continues: bool


def log_of(path: Path) -> Path:
    """The log beside a database file."""
    return path.with_name(f"{path.name}-wal")


def read_log(path: Path, page_bytes: int = 0) -> LogImage:
    """What a log holds; an empty image when there is none.

    Args:
        path: The log.
        page_bytes: Size of a page according to the database, for a log whose own header is destroyed.

    Raises:
        OSError: When it cannot be read.
    """
    try:
        opened = os.fdopen(open_plain(path), "rb")
    except FileNotFoundError:
        return LogImage()
    with opened as file:
        head = file.read(_HEADER.size)
        known = _checked_header(head)
        if known is not None:
            size, salts, checksum, big_endian = known
            return _image(_frames(file, size, checksum, big_endian=big_endian), size, salts)
        size = page_bytes or _DEFAULT_PAGE_BYTES
        images = [_image(_frames(file, size, None, big_endian=order), size, None) for order in (False, True)]
        return max(images, key=lambda image: len(image.later_pages))


def log_is_damaged(path: Path) -> bool:
    """Whether committed transactions lie behind a damaged part of a log; also beside a live writer.

    Raises:
        OSError: When it cannot be read.
    """
    image = read_log(path)
    if not image.is_damaged:
        return False
    # A writer may have been between two frames, or just have begun the log anew; then it is elsewhere by now.
    again = read_log(path)
    return again.is_damaged and again.broken_at == image.broken_at


def _checked_header(head: bytes) -> tuple[int, tuple[int, int], Checksum, bool] | None:
    if len(head) < _HEADER.size:
        return None
    magic, _, size, _, salt1, salt2, sum1, sum2 = _HEADER.unpack(head)
    big_endian = bool(magic & 1)
    if magic & ~1 != _MAGIC or size not in _PAGE_SIZES or _checksum(head[:24], (0, 0), big_endian) != (sum1, sum2):
        return None
    return size, (salt1, salt2), (sum1, sum2), big_endian


def _checksum(data: bytes, start: Checksum, big_endian: bool) -> Checksum:
    """SQLite's checksum of whole pairs of words.

    Each pair of words ``(even, odd)`` turns the state ``(f, s)`` into ``(f + s + even, f + 2 s + even + odd)``, so
    the result is a weighted sum of the start and of all words, modulo 2 to the 32.
    """
    words = np.frombuffer(data, dtype=">u4" if big_endian else "<u4").astype(np.uint32)
    weights = _weights(len(words) // 2)
    even, odd = words[::2], words[1::2]
    first, second = start
    (ff, fs), (_, ss) = weights.power
    first_sum = int(np.dot(weights.first_even, even)) + int(np.dot(weights.first_odd, odd))
    second_sum = int(np.dot(weights.second_even, even)) + int(np.dot(weights.second_odd, odd))
    return (ff * first + fs * second + first_sum) & _WORD, (fs * first + ss * second + second_sum) & _WORD


class _Weights(NamedTuple):
    power: tuple[tuple[int, int], tuple[int, int]]
    first_even: NDArray[np.uint32]
    first_odd: NDArray[np.uint32]
    second_even: NDArray[np.uint32]
    second_odd: NDArray[np.uint32]


@lru_cache(maxsize=8)
def _weights(pairs: int) -> _Weights:
    """The powers of the step ``((1, 1), (1, 2))``, that of the last pair first applied last."""
    (a, b), d = (1, 0), 1
    powers = []
    for _ in range(pairs):
        powers.append((a, b, d))
        a, b, d = (a + b) & _WORD, (b + d) & _WORD, (b + 2 * d) & _WORD
    table = np.array(powers[::-1], dtype=np.uint64).reshape(-1, 3)
    columns = [table[:, 0] + table[:, 1], table[:, 1], table[:, 1] + table[:, 2], table[:, 2]]
    return _Weights(((a, b), (b, d)), *((column & _WORD).astype(np.uint32) for column in columns))


def _frames(file: BinaryIO, size: int, start: Checksum | None, *, big_endian: bool) -> Iterator[_Frame]:
    """Every frame; ``continues`` says that its checksum follows from the one that the frame before it carries."""
    offset = _HEADER.size
    file.seek(offset)
    before = start
    while len(data := file.read(_FRAME.size + size)) == _FRAME.size + size:
        page, database_pages, salt1, salt2, sum1, sum2 = _FRAME.unpack_from(data)
        continues = False
        if before is not None and page:
            found = _checksum(data[_FRAME.size :], _checksum(data[:8], before, big_endian), big_endian)
            continues = found == (sum1, sum2)
        yield _Frame(page, database_pages, (salt1, salt2), (sum1, sum2), offset + _FRAME.size, continues)
        before = (sum1, sum2)
        offset += len(data)


def _image(frames: Iterator[_Frame], size: int, salts: tuple[int, int] | None) -> LogImage:
    """Sort frames into what SQLite would find and what lies behind the first break of the chain."""
    image = LogImage(page_bytes=size)
    unbroken = salts is not None
    uncommitted: dict[int, int] = {}
    behind: list[_Frame] = []
    for frame in frames:
        unbroken = unbroken and frame.continues and frame.salts == salts
        if not unbroken:
            image.broken_at = image.broken_at or (frame.offset, salts)
            if frame.continues and (salts is None or frame.salts == salts):
                behind.append(frame)
            continue
        uncommitted[frame.page] = frame.offset
        if frame.database_pages:
            image.pages.update(uncommitted)
            image.database_pages = frame.database_pages
            uncommitted.clear()
    if salts is None and behind:
        ((salts, _),) = Counter(frame.salts for frame in behind).most_common(1)
        behind = [frame for frame in behind if frame.salts == salts]
    # What follows the last commit was never committed: a transaction that was rolled back leaves such frames.
    while behind and not behind[-1].database_pages:
        behind.pop()
    image.later_pages = {frame.page: frame.offset for frame in behind}
    image.later_database_pages = behind[-1].database_pages if behind else 0
    return image
