"""The process tree of a server on this machine, its sockets, and the pressure on the host."""

from __future__ import annotations

import math
from dataclasses import replace

from vllm_monitor.clock import Clock
from vllm_monitor.collectors.local_machine import LocalMachine, local_addresses_of
from vllm_monitor.collectors.proc_files import ProcessStat, count_fds, read_stat, read_switches
from vllm_monitor.collectors.process_search import (
    FoundProcess,
    find_listeners,
    find_starting,
    find_tree,
    role_of,
)
from vllm_monitor.collectors.server_facts import ServerFacts, read_server_facts
from vllm_monitor.collectors.targets import host_and_port, normalise_target
from vllm_monitor.collectors.tcp_table import PortSockets
from vllm_monitor.records import ProcessInfo, ProcessObservation

__all__ = ["ProcessCollector"]

_SEARCH_SECONDS = 10.0
_SEARCH_WHILE_STARTING_SECONDS = 0.9
_RESOLVE_AGAIN_SECONDS = 60.0
_SHOW_ZOMBIE_SECONDS = 10.0


class ProcessCollector:
    """Follows the processes of one local server. For one thread at a time.

    A full search runs at the start, when the listening socket or the tree changes, every ten seconds, and
    every second while nobody listens; in between, only known processes are read. A process once known is
    shown until it is gone, also as an orphan after its server died; a zombie that nobody reaps, for ten
    seconds.

    Args:
        url: The server.
        clock: Where time comes from.
        machine: Shared by all collectors of the process.

    Raises:
        ConfigurationError: When the URL makes no sense.
    """

    def __init__(self, url: str, clock: Clock, machine: LocalMachine | None = None) -> None:
        self.target = normalise_target(url)
        self.note = ""
        """Why the processes of a server on this machine cannot be seen; empty when they can."""
        self.facts: ServerFacts | None = None
        """What the newest life of the server was started with; ``None`` before it was seen."""
        self._clock = clock
        self._machine = machine or LocalMachine(clock)
        self._host, self._port = host_and_port(self.target)
        self._addresses: frozenset[str] | None = None
        self._resolve_at = -math.inf
        self._known: dict[int, FoundProcess] = {}
        self._inodes: frozenset[int] = frozenset()
        self._search_at = -math.inf
        self._exit_code: int | None = None
        self._zombie_since: dict[int, float] = {}

    def collect(self) -> ProcessObservation | None:
        """Look at the server's processes. The first call waits for the resolver where the host is a name.

        Returns:
            ``None`` when the server runs on another machine, or its processes cannot be seen from here (see
            :attr:`note`). An observation without processes when nobody listens and none is left.
        """
        if not self._is_local():
            return None
        timestamp, now = self._clock.now(), self._clock.monotonic()
        table = self._machine.sockets()
        if not table.readable:
            self.note = "this system does not show its sockets and processes in /proc"
            return None
        sockets = table.of(self._port, self._addresses or ())
        expected = len(self._known)
        processes = self._read_known(now)
        if sockets.inodes != self._inodes or len(processes) < expected or now >= self._search_at:
            self._search(sockets, now)
            processes = self._read_known(now)
        if sockets.inodes and not processes:
            self.note = (
                f"port {self._port} is served by a process that cannot be seen from here: another user's, "
                "or in a container; run the monitor beside it to see its processes"
            )
            return None
        self.note = ""
        return ProcessObservation(
            target=self.target,
            timestamp=timestamp,
            processes=tuple(processes),
            host=self._machine.host.read(),
            listen_queue=sockets.listen_queue,
            established=sockets.established,
            exit_code=self._exit_code,
        )

    def _is_local(self) -> bool:
        now = self._clock.monotonic()
        if self._addresses is None and now >= self._resolve_at:
            self._resolve_at = now + _RESOLVE_AGAIN_SECONDS
            try:
                self._addresses = local_addresses_of(self._host)
                self._resolve_at = math.inf
                self.note = ""
            except (OSError, UnicodeError) as error:
                self.note = f"the host name {self._host} cannot be resolved: {error}"
            if self._addresses is not None:
                self._machine.watch_port(self._port)
        return self._addresses is not None

    def _search(self, sockets: PortSockets, now: float) -> None:
        table = self._machine.processes()
        servers = {pid for pid, known in self._known.items() if known.role == "api"}
        if sockets.inodes and (sockets.inodes != self._inodes or not servers):
            servers = find_listeners(table, sockets.inodes)
        if not sockets.inodes or not servers:
            # Nobody listens yet, or we may not see who does.
            servers |= find_starting(table, self._port)
        for found in find_tree(table, servers):
            if found.role == "api" and found.pid not in self._known:
                self._exit_code = None  # another life has begun
                self._read_facts(found.pid)
            before = self._known.get(found.pid)
            if before is None or before.start_ticks != found.start_ticks or found.is_server:
                self._known[found.pid] = found
        self._inodes = sockets.inodes
        pause = _SEARCH_SECONDS if sockets.inodes else _SEARCH_WHILE_STARTING_SECONDS
        self._search_at = now + pause

    def _read_facts(self, pid: int) -> None:
        """Of several processes of a life, the one that was started with arguments knows what it was started with."""
        facts = read_server_facts(pid)
        if facts.arguments or self.facts is None:
            self.facts = facts

    def _read_known(self, now: float) -> list[ProcessInfo]:
        infos = []
        for pid, known in list(self._known.items()):
            stat = read_stat(pid)
            if stat is None or stat.start_ticks != known.start_ticks or self._is_old_zombie(stat, now):
                del self._known[pid]
                self._zombie_since.pop(pid, None)
                continue
            role = role_of(stat, is_server=known.is_server) or known.role
            if role != known.role:
                self._known[pid] = replace(known, role=role)
            if role == "api" and stat.exit_code is not None:
                self._exit_code = stat.exit_code
            infos.append(_describe(stat, role))
        return infos

    def _is_old_zombie(self, stat: ProcessStat, now: float) -> bool:
        return stat.state == "zombie" and now - self._zombie_since.setdefault(stat.pid, now) > _SHOW_ZOMBIE_SECONDS


def _describe(stat: ProcessStat, role: str) -> ProcessInfo:
    switches = read_switches(stat.pid)
    return ProcessInfo(
        pid=stat.pid,
        role=role,
        state=stat.state,
        cpu_seconds=stat.cpu_seconds,
        rss_bytes=stat.rss_bytes,
        vms_bytes=stat.vms_bytes,
        threads=stat.threads,
        fds=count_fds(stat.pid),
        voluntary_switches=None if switches is None else switches[0],
        involuntary_switches=None if switches is None else switches[1],
    )
