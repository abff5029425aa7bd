"""A TCP port that can be opened and closed again, and stays ours in between."""

from __future__ import annotations

import errno
import socket

from aiohttp import web

from vllm_monitor.errors import ConfigurationError

__all__ = ["Listener"]

_CLOSE_SECONDS = 0.3


class Listener:
    """Serves an application on one port, or refuses connections there.

    While closed the port stays bound without listening: connections are refused as if nobody were there, but
    no other program gets the port.

    Args:
        host: Address to listen on.
        port: Port; 0 for any free one.

    Raises:
        ConfigurationError: When the address cannot be had.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._runner: web.AppRunner | None = None
        self._socket = _bind(host, port)
        self.port: int = self._socket.getsockname()[1]

    @property
    def url(self) -> str:
        """Where it listens."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    async def open(self, application: web.Application) -> None:
        """Accept connections for ``application``.

        Raises:
            ConfigurationError: When another program listens on the port.
        """
        # handler_cancellation: a client that hangs up must abort its request, as on a real server.
        runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=_CLOSE_SECONDS)
        await runner.setup()
        try:
            await web.SockSite(runner, self._socket).start()
        except OSError as error:
            await runner.cleanup()
            raise _unavailable(self._host, self.port, error) from error
        self._runner = runner

    async def close(self) -> None:
        """Refuse connections and end the open ones."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        for site in tuple(runner.sites):
            await site.stop()
        self._socket.close()
        self._socket = _bind(self._host, self.port)
        await runner.cleanup()

    async def release(self) -> None:
        """Close, and give the port back."""
        await self.close()
        self._socket.close()


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise _unavailable(host, port, error) from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _unavailable(host, port, error) from error
    return bound


def _unavailable(host: str, port: int, error: Exception) -> ConfigurationError:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return ConfigurationError(
            f"port {port} on {host} is in use",
            hint="Choose another one with --port; 0 takes any free port.",
        )
    return ConfigurationError(f"cannot listen on {host}, port {port}: {error}", hint="Check --host and --port.")
