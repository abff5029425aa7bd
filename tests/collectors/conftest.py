"""Servers on real sockets, good and bad."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ServeRoutes = Callable[..., AbstractAsyncContextManager[str]]
RawHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ServeRaw = Callable[[RawHandler], AbstractAsyncContextManager[str]]


@pytest.fixture
def serve_routes() -> ServeRoutes:
    """``async with serve_routes({"/metrics": handler}) as url``; paths may begin with a method."""

    @asynccontextmanager
    async def serve(routes: dict[str, Handler], tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
        app = web.Application()
        for path, handler in routes.items():
            method, _, bare = path.rpartition(" ")
            app.router.add_route(method or "GET", bare, handler)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        try:
            host, port = runner.addresses[0][:2]
            yield f"{'https' if tls else 'http'}://{'localhost' if tls else host}:{port}"
        finally:
            await runner.cleanup()

    return serve


@pytest.fixture
def serve_raw() -> ServeRaw:
    """``async with serve_raw(talk) as url``: whatever ``talk`` does with the connection is the answer."""

    @asynccontextmanager
    async def serve(talk: RawHandler) -> AsyncIterator[str]:
        async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await talk(reader, writer)
            except (ConnectionError, asyncio.CancelledError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(guarded, "127.0.0.1", 0)
        try:
            host, port = server.sockets[0].getsockname()[:2]
            yield f"http://{host}:{port}"
        finally:
            server.close()
            # Python 3.12 waits here for handlers, which may hang on purpose.
            await asyncio.sleep(0)

    return serve


@pytest.fixture(scope="session")
def shared_recordings() -> Path:
    """The folder of real recordings; the test is skipped where it is not there."""
    beside = Path(__file__).resolve().parents[3] / "shared"
    folder = Path(os.environ.get("VLLMMON_SHARED", beside)) / "recordings"
    if not folder.is_dir():
        pytest.skip("no shared recordings here")
    return folder
