"""Append-only files of JSON lines, each line with its own checksum.

A line is one JSON object whose last field is ``crc32``: eight hexadecimal digits over the bytes of the line before
that field (``{"a":1`` of ``{"a":1,"crc32":"..."}``). A line counts when its line feed is there and its checksum
holds; everything else can be cut off or left out without touching the other lines.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence.plain_file import open_plain

__all__ = ["INDEX_FILE", "LINES_FILE", "Line", "LineFile", "decode_line", "encode_line", "read_lines", "replace_file"]

LINES_FILE = "samples.jsonl"
"""The file that every store of the JSON backend has."""
INDEX_FILE = "index.db"
"""The SQLite index of a store of the JSON backend; made again from the lines whenever it is opened."""

_PIECE_BYTES = 64 << 20  # no line of ours is longer; garbage without line feeds is read in pieces of this size
_BYTES_PER_WRITE = 1 << 20
_TAIL = ',"crc32":"%08x"}\n'
_TAIL_BYTES = len(_TAIL % 0)


def encode_line(fields: dict[str, Any]) -> bytes:
    """The line of some fields, of which there is at least one; they hold what JSON can say."""
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        body = text.encode()[:-1]
    except UnicodeEncodeError:  # lone surrogates, which only the escaped form can say
        body = json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()[:-1]
    return body + (_TAIL % zlib.crc32(body)).encode()


def decode_line(line: bytes) -> dict[str, Any]:
    """The fields of a line.

    Raises:
        StoreDamagedError: When it is not what :func:`encode_line` made.
    """
    body, tail = line[:-_TAIL_BYTES], line[-_TAIL_BYTES:]
    if tail != (_TAIL % zlib.crc32(body)).encode():
        raise StoreDamagedError(
            "a line does not match its checksum", hint="It is set aside; the other lines are unharmed."
        )
    try:
        fields = json.loads(body + b"}")
    except (ValueError, RecursionError) as error:
        raise StoreDamagedError("a line is no JSON object", hint="It is set aside; the others are unharmed.") from error
    if not isinstance(fields, dict):
        raise StoreDamagedError("a line is no JSON object", hint="It is set aside; the others are unharmed.")
    return fields


class Line(NamedTuple):
    """A line as found.

    ``fields`` is ``None`` when it cannot be read; ``torn`` when its line feed is missing because the file ends.
    """

    offset: int
    raw: bytes
    fields: dict[str, Any] | None
    torn: bool


def read_lines(path: Path) -> Iterator[Line]:
    """Every line of a file in order, also those that cannot be read; one line at a time is in memory.

    Raises:
        OSError: When the file cannot be read. A file that does not exist has no lines.
    """
    if not path.exists():
        return
    offset = 0
    with os.fdopen(open_plain(path), "rb") as file:
        while raw := file.readline(_PIECE_BYTES):
            complete = raw.endswith(b"\n")
            try:
                fields = decode_line(raw)
            except StoreDamagedError:
                fields = None
            yield Line(offset, raw, fields, not complete and len(raw) < _PIECE_BYTES)
            offset += len(raw)


class LineFile:
    """A file that only grows. For one thread at a time, where nothing else is said.

    Args:
        path: The file; made with mode 0600 when it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made = not path.exists()
        self._descriptor = open_plain(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        opened = os.fstat(self._descriptor)
        self.size = opened.st_size
        self._file_number = (opened.st_dev, opened.st_ino)

    def append(self, lines: Iterable[bytes], *, durable: bool) -> None:
        """Append lines, all or none of them.

        Args:
            lines: Each with its line feed.
            durable: Whether they must survive power loss when this returns.

        Raises:
            OSError: When they could not be written; what was written of them is cut off again.
        """
        size = self.size
        try:
            size += _write_all(self._descriptor, lines)
            if durable:
                os.fsync(self._descriptor)
                if self._made:
                    _sync_folder(self.path.parent)
                    self._made = False
        except BaseException:
            self.cut(self.size)
            raise
        self.size = size

    def cut(self, size: int) -> None:
        """Cut off everything after the first ``size`` bytes."""
        os.ftruncate(self._descriptor, size)
        self.size = size

    def is_current(self) -> bool:
        """Whether the path still names the file that was opened. Any thread."""
        try:
            found = self.path.stat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._file_number

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def replace_file(path: Path, lines: Iterable[bytes]) -> None:
    """Put a file with other content in the place of one, atomically and durably; mode 0600.

    Raises:
        OSError: When it cannot be written; the old file is unharmed.
    """
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            _write_all(descriptor, lines)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _write_all(descriptor: int, lines: Iterable[bytes]) -> int:
    written = 0
    buffer = bytearray()
    for line in lines:
        buffer += line
        if len(buffer) >= _BYTES_PER_WRITE:
            written += _write(descriptor, buffer)
            buffer.clear()
    return written + _write(descriptor, buffer)


def _write(descriptor: int, data: bytes | bytearray) -> int:
    rest = memoryview(bytes(data))
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    return len(data)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
