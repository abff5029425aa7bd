"""Engines and workers that have outlived their server and still hold its memory."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from vllm_monitor.collectors.proc_files import ProcessStat, ProcessTable, command_line
from vllm_monitor.collectors.server_command import role_of_title, server_arguments
from vllm_monitor.doctor.findings import Finding, Fix, FixResult, Level
from vllm_monitor.doctor.subject import Machine, Subject
from vllm_monitor.doctor.wording import size

__all__ = ["TERM_SECONDS", "check_orphans"]

TERM_SECONDS = 5.0
"""Between SIGTERM and SIGKILL. A worker that hangs in a kernel or a driver does not hear the first."""
_ROLES = frozenset({"engine", "worker"})
_REAPERS = frozenset({"catatonit", "conmon", "containerd-shim", "docker-init", "dumb-init", "init", "systemd", "tini"})
"""Who takes in the children of the dead, beside process 1. Names as the kernel cuts them."""
_KERNEL_NAME_LENGTH = 15
_CHECK = "orphans"


@dataclass(frozen=True, slots=True)
class _Orphan:
    """A process without its server.

    Args:
        pid: Process id.
        start_ticks: When it started: together with the pid it names a process.
        title: What it calls itself.
        user: Id of its user.
        memory_bytes: Resident memory.
        gpu_bytes: GPU memory; ``None`` when it is not known to hold any.
    """

    pid: int
    start_ticks: int
    title: str
    user: int
    memory_bytes: int
    gpu_bytes: int | None

    def __str__(self) -> str:
        held = size(self.memory_bytes)
        if self.gpu_bytes is not None:
            held += f" and {size(self.gpu_bytes)} of GPU memory"
        return f"{self.title} (pid {self.pid}, {held})"


def check_orphans(subject: Subject) -> Iterator[Finding]:
    """Processes titled as vLLM's engines and workers whose parent is gone, and what hangs on them."""
    machine = subject.machine
    table = machine.processes()
    gpus = machine.gpus()
    found = [orphan for stat in _orphaned(table) if (orphan := _described(stat, gpus.held_by(stat.pid))) is not None]
    if not found:
        yield Finding(_CHECK, Level.OK, "no engine or worker without its server")
        return
    ours = [one for one in found if one.user == os.geteuid()]
    others = [one for one in found if one.user != os.geteuid()]
    if ours:
        names = ", ".join(map(str, ours))
        fix = Fix(f"end {names}: SIGTERM, and SIGKILL after {TERM_SECONDS:g} s", lambda: _end(machine, ours))
        message = f"the server of {names} is gone, and they still hold memory"
        data = {"processes": [asdict(one) for one in ours]}
        yield Finding(_CHECK, Level.PROBLEM, message, "Run again with --fix, or kill them.", fix, data)
    if others:
        message = f"the server of {', '.join(map(str, others))} is gone, and they still hold memory"
        users = ", ".join(sorted({str(one.user) for one in others}))
        data = {"processes": [asdict(one) for one in others]}
        yield Finding(_CHECK, Level.PROBLEM, message, f"They are of user {users}: end them as that user.", data=data)


def _orphaned(table: ProcessTable) -> list[ProcessStat]:
    """Those that were left behind, and engines and workers below them."""
    roots = [stat for stat in table if _is_left_behind(stat, table)]
    below = [child for root in roots for child in table.descendants(root.pid) if _role(child) in _ROLES]
    return list({stat.pid: stat for stat in (*roots, *below) if stat.state != "zombie"}.values())


def _role(stat: ProcessStat) -> str | None:
    return role_of_title(command_line(stat.pid) or (), stat.name)


def _is_left_behind(stat: ProcessStat, table: ProcessTable) -> bool:
    """Whether it is an engine or worker that was taken in by a process that is nobody's server.

    In a container process 1 may be the server itself, whatever it is called; then its children are of its process
    group. A parent that runs Python may be a program that uses vLLM as a library, and is left its children.
    """
    if _role(stat) not in _ROLES or stat.state == "zombie":
        return False
    parent = table.get(stat.parent_pid)
    if parent is None or (parent.pid != 1 and not _is_reaper(parent.name)):
        return False
    arguments = command_line(parent.pid) or ()
    program = Path(arguments[0]).name if arguments else parent.name
    is_server = server_arguments(arguments) is not None or role_of_title(arguments, parent.name) is not None
    if is_server or program.startswith(("python", "pypy", "vllm")):
        return False
    try:
        return os.getpgid(stat.pid) != os.getpgid(parent.pid)
    except OSError:
        return False


def _is_reaper(name: str) -> bool:
    return any(name == reaper[:_KERNEL_NAME_LENGTH] or name.startswith(f"{reaper}-") for reaper in _REAPERS)


def _described(stat: ProcessStat, gpu_bytes: int | None) -> _Orphan | None:
    title = (command_line(stat.pid) or (stat.name,))[0]
    user = _user_of(stat.pid)
    if user is None:
        return None  # it is gone meanwhile
    return _Orphan(stat.pid, stat.start_ticks, title, user, stat.rss_bytes, gpu_bytes)


def _end(machine: Machine, orphans: list[_Orphan]) -> FixResult:
    """End those that are still the very processes that were found, and still without a server."""
    done: list[str] = []
    spared: list[str] = []
    handles: dict[int, _Orphan] = {}
    for one in orphans:
        try:
            handles[os.pidfd_open(one.pid)] = one  # from here on no other process can take its place
        except OSError:
            done.append(f"{one.title} (pid {one.pid}) had ended by itself")
    still = {(stat.pid, stat.start_ticks) for stat in _orphaned(machine.processes())}
    for handle, one in list(handles.items()):
        is_same = (one.pid, one.start_ticks) in still and _user_of(one.pid) == os.geteuid()
        if not is_same or not _signal(handle, signal.SIGTERM):
            spared.append(f"{one.title} (pid {one.pid})")
            os.close(handle)
            del handles[handle]
    ended = _wait(handles, machine)
    for handle, one in handles.items():
        is_killed = handle not in ended and _signal(handle, signal.SIGKILL)
        done.append(f"{'killed' if is_killed else 'ended'} {one}")
    gone = _wait(handles, machine)
    remaining = [f"{one.title} (pid {one.pid})" for handle, one in handles.items() if handle not in gone]
    for handle in handles:
        os.close(handle)
    text = "; ".join(done) or "nothing was done"
    if spared:
        text += f"; left alone, because no longer as they were: {', '.join(spared)}"
    if remaining:
        text += f"; still there after SIGKILL (a driver holds them): {', '.join(remaining)}"
    return FixResult(not spared and not remaining, text)


def _user_of(pid: int) -> int | None:
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None


def _signal(handle: int, number: signal.Signals) -> bool:
    try:
        signal.pidfd_send_signal(handle, number)
    except OSError:
        return False
    return True


def _wait(handles: dict[int, _Orphan], machine: Machine) -> set[int]:
    """Those whose process has ended, after at most :data:`TERM_SECONDS`."""
    ended: set[int] = set()
    until = machine.clock.monotonic() + TERM_SECONDS
    while len(ended) < len(handles):
        left = until - machine.clock.monotonic()
        if left <= 0:
            break
        ready, _, _ = select.select([handle for handle in handles if handle not in ended], [], [], left)
        ended.update(ready)
        if not ready:
            break
    return ended
