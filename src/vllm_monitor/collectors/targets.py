"""What an operator may type for a server, and the one form in which we keep it."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

from vllm_monitor.errors import ConfigurationError

__all__ = ["host_and_port", "normalise_target"]

_HINT = "write it like http://127.0.0.1:8000 or https://gpu7.example.com"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?"
)
_UNSAFE = re.compile(r"[\x00-\x20\x7f\\<>\"{}|^`]")


def normalise_target(text: str) -> str:
    """The URL of a server in its one form: scheme, host, port if unusual, path if any; no slash at the end.

    ``host:port``, ``http(s)://host[:port][/path]``, a slash at the end and ``/metrics`` are all understood.

    Raises:
        ConfigurationError: When the text names no HTTP server, or carries a user name or password.
    """
    stripped = text.strip()
    if not stripped:
        raise ConfigurationError("the URL of the server is empty", hint=_HINT)
    if "@" in stripped.split("?", 1)[0]:
        # The text is not repeated here: it may hold a password.
        raise ConfigurationError(
            "the URL of the server carries a user name or password",
            hint="leave them out; pass a key with --api-key or VLLMMON_API_KEY instead",
        )
    if _UNSAFE.search(stripped):
        raise ConfigurationError(f"{stripped!r} is no URL of a server", hint=_HINT)
    parts = _split(stripped if _SCHEME.match(stripped) else f"http://{stripped}")
    if parts.scheme not in {"http", "https"}:
        raise ConfigurationError(f"{parts.scheme}:// is no scheme that vLLM speaks", hint=_HINT)
    if parts.query or parts.fragment:
        raise ConfigurationError(f"{stripped!r} has a query or fragment", hint=_HINT)
    host, port = _host(parts), _port(parts)
    path = parts.path.rstrip("/").removesuffix("/metrics").rstrip("/")
    default_port = 443 if parts.scheme == "https" else 80
    return f"{parts.scheme}://{host}{'' if port in {None, default_port} else f':{port}'}{path}"


def host_and_port(url: str) -> tuple[str, int]:
    """Host (IPv6 addresses without brackets) and port of a normalised URL."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _split(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError as error:
        raise ConfigurationError(f"{text!r} is no URL: {error}", hint=_HINT) from error


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    if parts.netloc.startswith("["):
        try:
            return f"[{ipaddress.IPv6Address(host).compressed}]"
        except ValueError as error:
            raise ConfigurationError(f"{host!r} is no IPv6 address", hint=_HINT) from error
    try:
        ascii_host = host.encode("idna").decode("ascii") if not host.isascii() else host
    except UnicodeError as error:
        raise ConfigurationError(f"{host!r} is no name of a host", hint=_HINT) from error
    if _HOST_NAME.fullmatch(ascii_host) is None:
        raise ConfigurationError(f"{host!r} is no name of a host", hint=_HINT)
    if re.fullmatch(r"[0-9.]+", ascii_host):
        try:
            ipaddress.IPv4Address(ascii_host)
        except ValueError as error:
            raise ConfigurationError(f"{host!r} is no IPv4 address", hint=_HINT) from error
    return ascii_host


def _port(parts: SplitResult) -> int | None:
    try:
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"{parts.netloc!r} has no usable port", hint=_HINT) from error
    if port == 0 or (port is None and parts.netloc.endswith(":")):
        raise ConfigurationError(f"{parts.netloc!r} has no usable port", hint=_HINT)
    return port
