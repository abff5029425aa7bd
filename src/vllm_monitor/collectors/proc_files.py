"""Reading /proc: the few files of a process that a tick needs, cheaper than a general library does.

Everything here answers ``None`` for a process that is gone or that we may not look at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ProcessStat", "ProcessTable", "command_line", "count_fds", "read_stat", "read_switches"]

# As psutil names them, so that recordings made with either read the same.
_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "disk-sleep",
    "T": "stopped",
    "t": "tracing-stop",
    "Z": "zombie",
    "X": "dead",
    "x": "dead",
    "K": "wake-kill",
    "W": "waking",
    "I": "idle",
    "P": "parked",
}
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_EXIT_CODE_FIELD = 49  # counted from the state, the first field after the name
_READ_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """What ``/proc/PID/stat`` says.

    Args:
        pid: Process id.
        name: The kernel's name of the process, at most 15 characters.
        state: As psutil names it.
        parent_pid: Its parent; an orphan's is the init process.
        cpu_seconds: User and system time.
        threads: Number of threads.
        start_ticks: When it started, in clock ticks since boot; together with the pid it names a process.
        vms_bytes: Virtual memory.
        rss_bytes: Resident memory.
        exit_code: Of a zombie that we may look at; negative for a signal.
    """

    pid: int
    name: str
    state: str
    parent_pid: int
    cpu_seconds: float
    threads: int
    start_ticks: int
    vms_bytes: int
    rss_bytes: int
    exit_code: int | None


def read_stat(pid: int) -> ProcessStat | None:
    """The state of a process."""
    text = _read(f"/proc/{pid}/stat")
    if text is None:
        return None
    head, _, tail = text.rpartition(b")")
    fields = tail.split()
    try:
        return ProcessStat(
            pid=pid,
            name=head.partition(b"(")[2].decode("utf-8", "replace"),
            state=_STATES.get(fields[0].decode("ascii"), "unknown"),
            parent_pid=int(fields[1]),
            cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND,
            threads=int(fields[17]),
            start_ticks=int(fields[19]),
            vms_bytes=int(fields[20]),
            rss_bytes=int(fields[21]) * _PAGE_BYTES,
            exit_code=_exit_code(pid, fields) if fields[0] == b"Z" else None,
        )
    except (ValueError, IndexError):
        return None  # it vanished while we read


def read_switches(pid: int) -> tuple[int, int] | None:
    """Voluntary and involuntary context switches of the main thread."""
    text = _read(f"/proc/{pid}/status")
    if text is None:
        return None
    _, found, tail = text.partition(b"\nvoluntary_ctxt_switches:")
    parts = tail.split()
    try:
        return (int(parts[0]), int(parts[2])) if found else None
    except (ValueError, IndexError):
        return None


def count_fds(pid: int) -> int | None:
    """Open file descriptors."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208  # a generator of Paths costs ten times this
    except OSError:
        return None


def command_line(pid: int) -> tuple[str, ...] | None:
    """The arguments of a process; empty for a zombie or a kernel thread."""
    text = _read(f"/proc/{pid}/cmdline")
    if text is None:
        return None
    return tuple(part.decode("utf-8", "replace") for part in text.rstrip(b"\x00 ").split(b"\x00") if part)


def socket_inodes(pid: int | str) -> Iterator[int]:
    """The inodes of all sockets that a process holds; none where we may not look."""
    folder = f"/proc/{pid}/fd"
    try:
        entries = os.listdir(folder)  # noqa: PTH208  # see count_fds
    except OSError:
        return
    for entry in entries:
        try:
            link = os.readlink(f"{folder}/{entry}")  # noqa: PTH115  # see count_fds
        except OSError:
            continue
        if link.startswith("socket:["):
            yield int(link[len("socket:[") : -1])


class ProcessTable:
    """All processes of the host at one moment."""

    def __init__(self) -> None:
        self._stats = {stat.pid: stat for stat in map(read_stat, _process_ids()) if stat is not None}
        self._children: dict[int, list[int]] = {}
        for stat in self._stats.values():
            self._children.setdefault(stat.parent_pid, []).append(stat.pid)

    def __iter__(self) -> Iterator[ProcessStat]:
        return iter(self._stats.values())

    def get(self, pid: int) -> ProcessStat | None:
        """One process."""
        return self._stats.get(pid)

    def ancestors(self, pid: int) -> Iterator[ProcessStat]:
        """The parent, its parent and so on."""
        seen = {pid}
        stat = self._stats.get(pid)
        while stat is not None and stat.parent_pid not in seen:
            seen.add(stat.parent_pid)
            stat = self._stats.get(stat.parent_pid)
            if stat is not None:
                yield stat

    def descendants(self, pid: int) -> Iterator[ProcessStat]:
        """All children, their children and so on."""
        pending, seen = [pid], {pid}
        while pending:
            for child in self._children.get(pending.pop(), ()):
                if child not in seen:
                    seen.add(child)
                    pending.append(child)
                    yield self._stats[child]


def _process_ids() -> Iterator[int]:
    try:
        names = [entry.name for entry in Path("/proc").iterdir()]
    except OSError:
        return
    yield from (int(name) for name in names if name.isdecimal())


def _exit_code(pid: int, fields: list[bytes]) -> int | None:
    """The kernel shows 0 to those who may not know, so only the owner's word counts."""
    try:
        may_know = os.geteuid() in {0, os.stat(f"/proc/{pid}").st_uid}  # noqa: PTH116  # see count_fds
    except OSError:
        return None
    return os.waitstatus_to_exitcode(int(fields[_EXIT_CODE_FIELD])) if may_know else None


def _read(path: str) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(descriptor, _READ_BYTES)
    except OSError:
        return None
    finally:
        os.close(descriptor)
