"""A spool: what was seen waits in files until a monitor reads it, also when there is none, or this server dies.

Chosen over a socket, because the monitor may come late, restart or be killed without anything being kept in the
server's memory; over shared memory, because plain lines outlive the server and can be read with ``tail``. Lines are
JSON, numbered without a gap, in segments; a reader takes segments in order and leaves a last line without its end for
later.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["FORMAT", "SUFFIX", "Spool"]

FORMAT = 1
SUFFIX = ".spool"
SEGMENTS = 8
ENCODED_AT_ONCE = 64
FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
NAME = re.compile(r"(?P<pid>[0-9]+)-[0-9]+-[0-9]+\.[0-9]{6,}\.spool")
FORGOTTEN_SECONDS = 7 * 86_400.0


class Spool:
    """The files of one process. For one thread; an error of the disk is kept in :attr:`failure`, not raised.

    Args:
        folder: Where the files are; made, for this user alone, when it is not there.
        name: Unique among processes; the files are ``name.000001.spool`` and so on.
        limit_bytes: All files together; the oldest segment goes first.
        header: What every segment begins with; what is added to it later, later segments begin with.
    """

    def __init__(self, folder: Path, name: str, limit_bytes: int, header: Mapping[str, Any]) -> None:
        self._folder = folder
        self._name = name
        self._segment_bytes = max(4096, limit_bytes // SEGMENTS)
        self._header = header
        self._descriptor: int | None = None
        self._segment = 0
        self._written = 0
        self._lines = 0
        self._torn = False
        self._cleaned = False
        self.failure: OSError | None = None

    def write(self, records: Collection[Mapping[str, Any]]) -> int:
        """Append records, each as one numbered line; returns how many are in the files whole.

        Fewer than all when the disk would not take them (:attr:`failure` says why); give the rest again later.
        """
        pending, done, self.failure = list(records), 0, None
        if self._descriptor is not None and os.fstat(self._descriptor).st_nlink == 0:
            self.close()  # somebody has removed the file, or its folder: what is written there nobody finds
        while done < len(pending):
            if self._descriptor is None and not self._begin_segment():
                break
            some = pending[done : done + ENCODED_AT_ONCE]
            data = [_line({"n": self._lines + done + place, **record}) for place, record in enumerate(some, start=1)]
            together = self._fitting(data)
            if not together:
                if not self._begin_segment():
                    break
                together = self._fitting(data) or 1  # what is larger than a segment has one for itself
            written = self._append(data[:together])
            done += written
            if written < together:
                break
        self._lines += done
        return done

    def _fitting(self, data: Sequence[bytes]) -> int:
        """How many of these lines the segment has room for."""
        room, fitting = self._segment_bytes - self._written, 0
        for line in data:
            room -= len(line)
            if room < 0:
                break
            fitting += 1
        return fitting

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def _begin_segment(self) -> bool:
        """Whether there is a new segment with its header; without it no reader would know whose lines they are."""
        self.close()
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_folder()
            if not self._cleaned:
                self._remove_forgotten()
                self._cleaned = True
            path = self._path(self._segment + 1)
            try:
                self._descriptor = os.open(path, FLAGS, 0o600)
            except FileExistsError:
                self._segment += 1  # it is not ours: the next time the one after it
                raise
        except OSError as error:
            self.failure = error
            return False
        self._written, self._torn = 0, False
        header = {**self._header, "kind": "header", "format": FORMAT, "segment": self._segment + 1}
        if self._append([_line(header)]) != 1:
            self.close()
            with contextlib.suppress(OSError):
                path.unlink()
            return False
        self._segment += 1
        with contextlib.suppress(OSError):
            self._path(self._segment - SEGMENTS).unlink(missing_ok=True)
        return True

    def _path(self, segment: int) -> Path:
        return self._folder / f"{self._name}.{segment:06d}{SUFFIX}"

    def _check_folder(self) -> None:
        """In a folder of others, or that they may write to, what we write could be theirs: a link, or a lie."""
        seen = self._folder.stat()
        if seen.st_uid not in (0, os.getuid()) or seen.st_mode & stat.S_IWOTH:
            msg = f"{self._folder} belongs to another user, or others may write to it; name one in VLLMMON_SPOOL_DIR"
            raise PermissionError(msg)

    def _append(self, lines: Sequence[bytes]) -> int:
        """Write lines at once, which is one wait for the interpreter; returns how many of them are whole."""
        assert self._descriptor is not None  # noqa: S101  # a segment was begun
        # A full disk may have taken only a part of the line before; end it, so that these are whole.
        ending = b"\n" if self._torn else b""
        text = ending + b"".join(lines)
        done = 0
        try:
            while done < len(text):
                done += os.write(self._descriptor, text[done:])
        except OSError as error:
            self.failure = error
        self._written += done
        if done:
            self._torn = not text[:done].endswith(b"\n")
        return max(0, text[:done].count(b"\n") - len(ending))

    def _remove_forgotten(self) -> None:
        """Files of processes that are gone, which nobody has written for a week."""
        for path in self._folder.iterdir():
            found = NAME.fullmatch(path.name)
            with contextlib.suppress(OSError):
                if found is None or time.time() - path.stat().st_mtime <= FORGOTTEN_SECONDS:
                    continue
                if not Path(f"/proc/{found['pid']}").exists():  # a clock that is wrong makes nothing old
                    path.unlink()


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def _line(record: Mapping[str, Any]) -> bytes:
    try:
        return _encode(record).encode() + b"\n"
    except (TypeError, ValueError):  # a NaN, say: in its place stands that something cannot be told
        return _encode({"n": record.get("n"), "kind": "unwritable"}).encode() + b"\n"
