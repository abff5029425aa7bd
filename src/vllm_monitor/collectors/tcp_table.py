"""Who listens on a server's port, how long its queue is, how many are connected."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass

from vllm_monitor.collectors.proc_files import socket_inodes
from vllm_monitor.collectors.socket_listing import TcpSocket, list_sockets, plain_address

__all__ = ["PortSockets", "TcpTable"]


@dataclass(frozen=True, slots=True)
class PortSockets:
    """The sockets of one server's port.

    Args:
        inodes: The sockets that listen; empty when nobody does.
        listen_queue: Connections waiting to be accepted; ``None`` when nobody listens.
        established: Connections to the port as the server sees them, ours left out.
    """

    inodes: frozenset[int]
    listen_queue: int | None
    established: int


class TcpTable:
    """One reading of the kernel's sockets, for all watched ports at once.

    Args:
        ports: The ports of the servers.
    """

    def __init__(self, ports: Collection[int]) -> None:
        sockets = list_sockets(ports)
        self.readable = sockets is not None
        self._listening = [found for found in sockets or () if found.listening]
        self._connected = [found for found in sockets or () if not found.listening]
        self._own_ports = _own_ports(self._connected, ports)

    def of(self, port: int, addresses: Collection[str]) -> PortSockets:
        """The sockets of a server.

        Args:
            port: Its port.
            addresses: The addresses under which its URL reaches it; a socket that listens on another one
                belongs to another server.
        """
        wanted = {_packed(address) for address in addresses}
        listeners = [
            found
            for found in self._listening
            if found.port == port and (_is_wildcard(found.address) or found.address in wanted)
        ]
        bound = {found.address for found in listeners}
        everywhere = not bound or any(map(_is_wildcard, bound))
        established = sum(
            found.port == port and found.peer_port not in self._own_ports and (everywhere or found.address in bound)
            for found in self._connected
        )
        return PortSockets(
            inodes=frozenset(found.inode for found in listeners),
            listen_queue=sum(found.queue for found in listeners) if listeners else None,
            established=established,
        )


def _own_ports(connected: list[TcpSocket], ports: Collection[int]) -> set[int]:
    """The local ports from which we ourselves are connected to a server."""
    clients = [found for found in connected if found.peer_port in ports]
    own_inodes = set(socket_inodes("self")) if clients else set()
    return {found.port for found in clients if found.inode in own_inodes}


def _is_wildcard(address: bytes) -> bool:
    return not any(address)


def _packed(address: str) -> bytes:
    return plain_address(ipaddress.ip_address(address.partition("%")[0]).packed)
