"""Finding a server's processes from its port, and the tree that hangs on them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from vllm_monitor.collectors.proc_files import ProcessStat, ProcessTable, command_line, socket_inodes
from vllm_monitor.collectors.server_command import (
    is_forwarder,
    name_for_other,
    port_of_server_command,
    role_of_title,
)

__all__ = ["FoundProcess", "find_listeners", "find_starting", "find_tree", "role_of"]


@dataclass(frozen=True, slots=True)
class FoundProcess:
    """A process of a server.

    Args:
        pid: Process id.
        start_ticks: When it started; tells it from another process that got its pid.
        role: As in :class:`~vllm_monitor.records.ProcessInfo`.
        is_server: It listens, or was started to.
    """

    pid: int
    start_ticks: int
    role: str
    is_server: bool


def find_listeners(table: ProcessTable, inodes: Collection[int]) -> set[int]:
    """The processes that hold a listening socket; slow, because it looks into every process.

    Processes that merely forward connections are left out, and so is whatever we may not look into.
    """
    wanted = set(inodes)
    return {
        stat.pid
        for stat in table
        if not is_forwarder(stat.name) and any(inode in wanted for inode in socket_inodes(stat.pid))
    }


def find_starting(table: ProcessTable, port: int) -> set[int]:
    """The processes whose command line starts a server on a port.

    A forked child keeps its parent's command line until it sets its own title; only the parent counts.
    """
    found = {
        stat.pid
        for stat in table
        if stat.state != "zombie" and port_of_server_command(command_line(stat.pid) or ()) == port
    }
    return {pid for pid in found if not any(stat.pid in found for stat in table.ancestors(pid))}


def find_tree(table: ProcessTable, servers: Collection[int]) -> list[FoundProcess]:
    """The servers, what started them if that is a server command too, and all their descendants.

    With several API servers, one ``vllm serve`` starts them and the engines; the listeners are its children.
    """
    tops = {_top(table, pid) for pid in servers}
    found: dict[int, FoundProcess] = {}
    for top in sorted(tops):
        for stat in _with_descendants(table, top):
            is_server = stat.pid in servers or stat.pid == top
            # A zombie that we did not know alive tells nothing; we ourselves may run below the server.
            if stat.state != "zombie" and (is_server or stat.pid != os.getpid()):
                role = role_of(stat, is_server=is_server) or "other:?"
                found[stat.pid] = FoundProcess(stat.pid, stat.start_ticks, role, is_server)
    return list(found.values())


def role_of(stat: ProcessStat, *, is_server: bool) -> str | None:
    """The role of one process now.

    A forked child looks like its parent until it sets its own title or becomes another program, so a role
    is asked for again as long as the process lives.

    Args:
        stat: The process.
        is_server: It listens, or was started to.

    Returns:
        ``None`` for a process that has lost its command line, because it is about to be gone.
    """
    arguments = command_line(stat.pid)
    if not arguments:
        return role_of_title((), stat.name)
    role = role_of_title(arguments, stat.name)
    if role is not None:
        return role
    return "api" if is_server else f"other:{name_for_other(arguments, stat.name)}"


def _top(table: ProcessTable, pid: int) -> int:
    top = pid
    for stat in table.ancestors(pid):
        if port_of_server_command(command_line(stat.pid) or ()) is not None:
            top = stat.pid
    return top


def _with_descendants(table: ProcessTable, pid: int) -> Iterator[ProcessStat]:
    stat = table.get(pid)
    if stat is not None:
        yield stat
        yield from table.descendants(pid)
