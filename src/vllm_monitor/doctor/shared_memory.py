"""Room in shared memory, and what dead servers have left there."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vllm_monitor.doctor.findings import Finding, Fix, FixResult, Level
from vllm_monitor.doctor.subject import Machine, Subject
from vllm_monitor.doctor.wording import size

__all__ = ["LEAST_AGE_SECONDS", "LEAST_BYTES", "check_shared_memory"]

LEAST_BYTES = 240 << 20
"""vLLM 0.32 refuses to start workers when its largest buffer between processes (24 MiB times 10) does not fit."""
LEAST_AGE_SECONDS = 600.0
_MIB = 1 << 20
_LEFTOVER = re.compile(r"psm_[0-9a-f]{8}|vllm_(?:offload|ec)_[\w-]+\.mmap")
"""What Python calls a shared memory without a name, as vLLM's are; and two that vLLM names itself."""
_OF_VLLM = "vllm_"
_RING_CHUNKS = 10
_MOST_RING_READERS = 1024
_CANNOT_TELL = {errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_CHECK = "shared memory"


@dataclass(frozen=True, slots=True)
class _Leftover:
    path: Path
    device: int
    inode: int
    used_bytes: int
    size_bytes: int

    @property
    def is_of_vllm(self) -> bool:
        """Whether its name is vLLM's own, or its size that of a buffer between vLLM's processes.

        Such a buffer has ten chunks of whole MiB, each with one byte for its writer and for every reader (vLLM 0.27 to
        0.32). Python names it as it names those of every other program, and nothing within tells.
        """
        if self.path.name.startswith(_OF_VLLM):
            return True
        chunk, rest = divmod(self.size_bytes, _RING_CHUNKS)
        return not rest and chunk > _MIB and 1 < chunk % _MIB <= 1 + _MOST_RING_READERS


def check_shared_memory(subject: Subject) -> Iterator[Finding]:
    """Size and free space of ``/dev/shm``, and segments that nobody has open any more."""
    folder = subject.machine.shm_dir
    try:
        room = os.statvfs(folder)
    except OSError as error:
        message = f"{folder} cannot be looked at: {error.strerror}"
        yield Finding(_CHECK, Level.UNKNOWN, message, "Workers talk through it; see that it is mounted.")
        return
    total, free = room.f_frsize * room.f_blocks, room.f_frsize * room.f_bavail
    data = {"total_bytes": total, "free_bytes": free, "needed_bytes": LEAST_BYTES}
    if free < LEAST_BYTES:
        message = f"{folder} has {size(free)} of {size(total)} free; workers need {size(LEAST_BYTES)} at least"
        advice = (
            "Give the container more: --ipc=host or --shm-size=8g in docker, a memory volume at /dev/shm in Kubernetes."
        )
        level = Level.PROBLEM if _has_workers(subject) else Level.WARNING
        yield Finding(_CHECK, level, message, advice, data=data)
    else:
        yield Finding(_CHECK, Level.OK, f"{size(free)} of {size(total)} free in {folder}", data=data)
    yield from _left_behind(subject.machine)


def _left_behind(machine: Machine) -> Iterator[Finding]:
    """Segments that nobody has open: those of vLLM with a fix, those that may be of any program without."""
    folder = machine.shm_dir
    found, untold = _leftovers(machine)
    leftovers = [one for one in found if one.is_of_vllm]
    others = [one for one in found if not one.is_of_vllm]
    if untold:
        message = f"whether anybody still uses {', '.join(untold)} in {folder} cannot be told on this system"
        yield Finding(_CHECK, Level.UNKNOWN, message, "If no vLLM runs here, remove them by hand.")
    if leftovers:
        names = _names(leftovers)
        held = sum(one.used_bytes for one in leftovers)
        message = f"{len(leftovers)} segments of dead vLLM processes hold {size(held)} in {folder}: {names}"
        fix = Fix(
            f"remove {names} from {folder}: nobody has them open, they are yours and older than 10 minutes",
            lambda: _remove(machine, leftovers),
        )
        yield Finding(_CHECK, Level.NOTE, message, "Run again with --fix.", fix, {"segments": names.split(", ")})
    if others:
        held = sum(one.used_bytes for one in others)
        message = (
            f"{len(others)} segments of Python programs hold {size(held)} in {folder}, open nowhere: {_names(others)}"
        )
        advice = (
            "They have not the size of vLLM's buffers, so --fix leaves them; remove them by hand if nobody needs them."
        )
        yield Finding(_CHECK, Level.NOTE, message, advice, data={"segments": [one.path.name for one in others]})


def _names(leftovers: list[_Leftover]) -> str:
    return ", ".join(one.path.name for one in leftovers)


def _has_workers(subject: Subject) -> bool:
    if subject.launch is None:
        return False
    several = subject.size("tensor-parallel-size") * subject.size("pipeline-parallel-size") > 1
    return several or subject.installation.is_cpu_build


def _leftovers(machine: Machine) -> tuple[list[_Leftover], list[str]]:
    """Segments that are proven to be abandoned, and the names of those of which nothing can be proven."""
    found: list[_Leftover] = []
    untold: list[str] = []
    for path in sorted(path for path in machine.shm_dir.iterdir() if _LEFTOVER.fullmatch(path.name)):
        try:
            descriptor = _open_abandoned(path, machine.clock.now())
        except OSError as error:
            if error.errno in _CANNOT_TELL:
                untold.append(path.name)
            continue  # in use, young, of somebody else, or gone meanwhile
        try:
            status = os.fstat(descriptor)
            found.append(_Leftover(path, status.st_dev, status.st_ino, status.st_blocks * 512, status.st_size))
        finally:
            os.close(descriptor)
    return found, untold


def _open_abandoned(path: Path, now: float) -> int:
    """Open a segment that is ours, old, and open nowhere else; the descriptor holds a lease that proves it.

    The kernel grants a lease for writing only when no other process, of whatever user and in whatever container, has
    the file open or mapped. Who opens it meanwhile waits until the lease is given back, which closing does.

    Raises:
        OSError: When it is anything else.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_nlink == 1
        newest = max(status.st_mtime, status.st_ctime, status.st_atime)
        if not is_ours or now - newest < LEAST_AGE_SECONDS:
            raise PermissionError
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)  # who breaks the lease would else end us with SIGIO
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove(machine: Machine, leftovers: list[_Leftover]) -> FixResult:
    removed, kept = [], []
    for one in leftovers:
        try:
            descriptor = _open_abandoned(one.path, machine.clock.now())
        except OSError:
            kept.append(one.path.name)
            continue
        try:
            status = os.fstat(descriptor)
            if (status.st_dev, status.st_ino) != (one.device, one.inode):
                kept.append(one.path.name)
                continue
            one.path.unlink()
            removed.append(one.path.name)
        except OSError:
            kept.append(one.path.name)
        finally:
            os.close(descriptor)
    text = f"removed {', '.join(removed) or 'nothing'}"
    return FixResult(
        not kept, f"{text}; left alone, because no longer as they were: {', '.join(kept)}" if kept else text
    )
