"""How much memory this process may still take: the host's, and that of every control group around it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["GroupRoom", "HostMemory", "group_room", "read_host_memory"]

_KIB = 1024


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Memory of the host in bytes, as the kernel tells it.

    Args:
        total_bytes: All of it.
        available_bytes: What new programs may take without swapping.
        swap_total_bytes: Swap space.
        swap_free_bytes: What is free of it.
    """

    total_bytes: int
    available_bytes: int
    swap_total_bytes: int
    swap_free_bytes: int


@dataclass(frozen=True, slots=True)
class GroupRoom:
    """The control group that leaves the least room.

    Args:
        limit_bytes: Its limit.
        used_bytes: What is used of it, without the page cache that gives way.
    """

    limit_bytes: int
    used_bytes: int

    @property
    def room_bytes(self) -> int:
        """What may still be taken."""
        return max(0, self.limit_bytes - self.used_bytes)


def read_host_memory(proc_dir: Path) -> HostMemory | None:
    """Memory of the host; ``None`` where the kernel does not tell."""
    figures = _table(proc_dir / "meminfo")
    try:
        names = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
        return HostMemory(*(figures[f"{name}:"] * _KIB for name in names))
    except KeyError:
        return None


def group_room(proc_dir: Path, cgroup_dir: Path, total_bytes: int) -> GroupRoom | None:
    """The tightest limit of this process's control groups, of version 1 and 2; ``None`` when there is none.

    Args:
        proc_dir: Where the kernel tells of processes.
        cgroup_dir: Where control groups are mounted.
        total_bytes: Memory of the host: a limit above it is none.
    """
    rooms = [one for one in _groups(proc_dir, cgroup_dir) if one.limit_bytes < total_bytes]
    return min(rooms, key=lambda one: one.room_bytes, default=None)


def _groups(proc_dir: Path, cgroup_dir: Path) -> Iterator[GroupRoom]:
    for line in (_read(proc_dir / "self" / "cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            for root in (cgroup_dir, cgroup_dir / "unified"):
                yield from _rooms(root, path, ("memory.max", "memory.current", "inactive_file"))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _rooms(cgroup_dir / "memory", path, names)


def _rooms(root: Path, path: str, names: tuple[str, str, str]) -> Iterator[GroupRoom]:
    """The limits of a group and all above it. Within a container its path may not be mounted; its root then is it."""
    group = root / path.lstrip("/")
    for folder in (group, *group.parents):
        limit, used = (_number(folder / name) for name in names[:2])
        if limit is not None and used is not None:
            yield GroupRoom(limit, max(0, used - _table(folder / "memory.stat").get(names[2], 0)))
        if folder == root:
            return


def _table(path: Path) -> dict[str, int]:
    words = (line.split() for line in (_read(path) or "").splitlines())
    return {parts[0]: int(parts[1]) for parts in words if len(parts) > 1 and parts[1].isdecimal()}


def _number(path: Path) -> int | None:
    text = (_read(path) or "").strip()
    return int(text) if text.isdecimal() else None  # "max" is no limit


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
