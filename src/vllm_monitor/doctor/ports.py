"""Whether the server will get its port, and if not, who has it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path

from vllm_monitor.collectors.proc_files import command_line, socket_inodes
from vllm_monitor.collectors.socket_listing import list_sockets
from vllm_monitor.doctor.findings import Finding, Level
from vllm_monitor.doctor.secrets import is_address
from vllm_monitor.doctor.subject import Subject
from vllm_monitor.persistence import redact

__all__ = ["check_port", "shown_command"]

_MOST_COMMAND = 100
_CHECK = "port"


def check_port(subject: Subject) -> Iterator[Finding]:
    """Binds the port as the server would, without listening, and lets it go at once."""
    launch, port = subject.launch, subject.port
    if launch is not None and launch.has("uds"):
        yield Finding(_CHECK, Level.OK, "it serves on a Unix socket and needs no port")
        return
    if not 0 < port < 65_536:
        yield Finding(_CHECK, Level.PROBLEM, f"there is no port {port}", "Choose one from 1 to 65535.")
        return
    host = launch.host if launch is not None else ""
    if not is_address(host):
        message = "what --host names is no address of a machine"
        yield Finding(_CHECK, Level.PROBLEM, message, "Leave --host out, or name an address that it has.")
        return
    where = f"port {port} of {host or 'all addresses'}"
    data = {"port": port, "host": host}
    failure = _bind(host, port)
    if failure is None:
        yield Finding(_CHECK, Level.OK, f"{where} is free", data=data)
    elif failure.errno == errno.EADDRINUSE:
        yield _taken(subject, where, data)
    elif failure.errno == errno.EACCES:
        message = f"this user may not serve on {where}: ports that low are for root"
        yield Finding(_CHECK, Level.PROBLEM, message, "Choose a port from 1024 up.", data=data)
    elif isinstance(failure, socket.gaierror) or failure.errno == errno.EADDRNOTAVAIL:
        message = f"{host} is no address of this machine"
        yield Finding(_CHECK, Level.PROBLEM, message, "Leave --host out, or name an address that it has.", data=data)
    else:
        yield Finding(_CHECK, Level.UNKNOWN, f"{where} could not be tried: {failure}", data=data)


def shown_command(pid: int) -> str:
    """The command line of a process without secrets, cut to a line; its pid alone when it cannot be read."""
    words = redact(list(command_line(pid) or ()))
    text = " ".join([Path(words[0]).name, *words[1:]] if words else ())
    return f"pid {pid}" + (f" ({text[:_MOST_COMMAND]}{'...' if len(text) > _MOST_COMMAND else ''})" if text else "")


def _bind(host: str, port: int) -> OSError | None:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as vLLM does
            trial.bind((host, port))
    except OSError as error:
        return error
    except (UnicodeError, TypeError):  # no name of a machine: empty between dots, or too long
        return socket.gaierror(socket.EAI_NONAME, "no name of a machine")
    return None


def _taken(subject: Subject, where: str, data: dict[str, object]) -> Finding:
    sockets = list_sockets([subject.port]) or ()
    inodes = {one.inode for one in sockets if one.listening and one.port == subject.port}
    pids = sorted(one.pid for one in subject.machine.processes() if not inodes.isdisjoint(socket_inodes(one.pid)))
    if pids:
        who = ", ".join(shown_command(pid) for pid in pids)
        advice = "End it first if it is an old server, or choose another --port."
    else:
        who = "a process that this user may not look at"
        advice = f"Ask as root: ss -ltnp 'sport = :{subject.port}'. Or choose another --port."
    return Finding(_CHECK, Level.PROBLEM, f"{where} is taken by {who}", advice, data={**data, "pids": pids})
