"""HTTP as probes need it: one connector for all targets, a deadline and a size limit on everything read."""

from __future__ import annotations

import ssl
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
from yarl import URL

from vllm_monitor.collectors.probe_failures import TruncatedBodyError
from vllm_monitor.errors import ConfigurationError, PageTooLargeError
from vllm_monitor.records import ProbeFailure

__all__ = ["Answer", "Connections", "make_tls_context", "read_body"]

_MAX_REDIRECTS = 3
_KEEP_ALIVE_SECONDS = 75.0
_DNS_CACHE_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back from one request.

    Args:
        status: HTTP status; ``None`` when there was no answer.
        body: The body of a good answer, unpacked where the server compressed it although asked not to.
        failure: Why the answer is of no use.
    """

    status: int | None
    body: bytes = b""
    failure: ProbeFailure | None = None


class Connections:
    """Connections to all targets of a process, kept alive between probes. Belongs to one event loop.

    Compression is not asked for: pages travel over the host or a data centre, where it costs more CPU than it
    saves time. Redirects are followed on the same origin only, so a key never reaches another host.
    """

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._tls: dict[tuple[str | None, bool], ssl.SSLContext] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. Safe to call twice."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    def tls_context(self, ca_file: str | None, *, insecure: bool) -> ssl.SSLContext:
        """How https is checked; one context per combination, because making one is slow.

        Raises:
            ConfigurationError: When the file of the authority cannot be used.
        """
        key = (ca_file, insecure)
        if key not in self._tls:
            self._tls[key] = make_tls_context(ca_file, insecure=insecure)
        return self._tls[key]

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        tls: ssl.SSLContext | bool,
        json: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; the caller sets the deadline with :func:`asyncio.timeout`.

        Raises:
            aiohttp.ClientError: When there is no answer.
        """
        target, hops = URL(url), 0
        while True:
            async with self._open().request(
                method, target, headers=headers, ssl=tls, json=json, allow_redirects=False
            ) as response:
                following = _same_origin_redirect(response, target) if hops < _MAX_REDIRECTS else None
                if following is None:
                    yield response
                    return
            target, hops = following, hops + 1

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS, ttl_dns_cache=_DNS_CACHE_SECONDS
                ),
                timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None),
                headers={"Accept-Encoding": "identity", "User-Agent": "vllm-monitor"},
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session


async def read_body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Read a body, never holding more than ``max_bytes`` of it.

    Raises:
        PageTooLargeError: When the body is, or unpacks to, more than that.
        TruncatedBodyError: When a compressed body ends too early.
        aiohttp.ClientError: When the connection breaks.
    """
    if (response.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in {"identity", "", "gzip", "x-gzip", "deflate"}:
        raise aiohttp.ClientError(f"the server insists on the encoding {encoding!r}")
    unpacker = None if encoding in {"identity", ""} else zlib.decompressobj(wbits=47)  # 47: gzip or zlib
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        unpacked = chunk if unpacker is None else _unpack(unpacker, chunk, max_bytes - size + 1)
        size += len(unpacked)
        if size > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(unpacked)
    if unpacker is not None and not unpacker.eof:
        raise TruncatedBodyError
    return b"".join(chunks)


def _unpack(unpacker: zlib._Decompress, chunk: bytes, max_bytes: int) -> bytes:
    try:
        return unpacker.decompress(chunk, max_bytes)
    except zlib.error as error:
        raise aiohttp.ClientError("the body is not compressed as it claims") from error


def _too_large(max_bytes: int) -> PageTooLargeError:
    return PageTooLargeError(
        f"the answer is larger than {max_bytes / 2**20:g} MiB",
        hint="check that the URL is the root of a vLLM server; its metrics page has some 50 KiB",
    )


def _same_origin_redirect(response: aiohttp.ClientResponse, asked: URL) -> URL | None:
    location = response.headers.get("Location")
    if response.status not in {301, 302, 303, 307, 308} or not location:
        return None
    try:
        following = asked.join(URL(location))
    except ValueError:
        return None
    return following if following.origin() == asked.origin() else None


def make_tls_context(ca_file: str | None, *, insecure: bool) -> ssl.SSLContext:
    """How https is checked.

    Args:
        ca_file: PEM file of certificate authorities to trust; ``None`` trusts those of the system.
        insecure: Accept any certificate.

    Raises:
        ConfigurationError: When the file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"the file of certificate authorities {ca_file!r} cannot be used: {error}",
            hint="give a readable PEM file with --ca-file",
        ) from error
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
