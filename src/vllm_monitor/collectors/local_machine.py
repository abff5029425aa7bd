"""What several targets on this machine share: one reading per tick of sockets, processes and host pressure."""

from __future__ import annotations

import ipaddress
import socket

import psutil

from vllm_monitor.clock import Clock
from vllm_monitor.collectors.host import HostReader
from vllm_monitor.collectors.proc_files import ProcessTable
from vllm_monitor.collectors.tcp_table import TcpTable

__all__ = ["LocalMachine"]

_CACHE_SECONDS = 0.5


class LocalMachine:
    """This machine, read at most twice a second however many targets ask. For one thread at a time.

    Args:
        clock: Where time comes from.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ports: set[int] = set()
        self._tcp: tuple[float, TcpTable] | None = None
        self._table: tuple[float, ProcessTable] | None = None
        self.host = HostReader(clock)

    def watch_port(self, port: int) -> None:
        """Include a port in the readings of sockets."""
        if port not in self._ports:
            self._ports.add(port)
            self._tcp = None

    def sockets(self) -> TcpTable:
        """The sockets of all watched ports."""
        now = self._clock.monotonic()
        if self._tcp is None or now - self._tcp[0] >= _CACHE_SECONDS:
            self._tcp = (now, TcpTable(self._ports))
        return self._tcp[1]

    def processes(self) -> ProcessTable:
        """All processes."""
        now = self._clock.monotonic()
        if self._table is None or now - self._table[0] >= _CACHE_SECONDS:
            self._table = (now, ProcessTable())
        return self._table[1]


def local_addresses_of(host: str) -> frozenset[str] | None:
    """The addresses of a host, if one of them is an address of this machine.

    Returns:
        ``None`` when the host is another machine; raises nothing but waits for the resolver.

    Raises:
        OSError: When the name cannot be resolved (now).
    """
    found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    own = {
        address.address.partition("%")[0]
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family in {socket.AF_INET, socket.AF_INET6}
    }
    for address in found:
        parsed = ipaddress.ip_address(address.partition("%")[0])
        if parsed.is_loopback or parsed.is_unspecified or str(parsed) in own:
            # A connection to 0.0.0.0 arrives at the loopback interface.
            return frozenset({*found, "127.0.0.1"} if parsed.is_unspecified else found)
    return None
