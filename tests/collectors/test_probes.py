from __future__ import annotations

import asyncio
import gzip
import resource
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trustme
from aiohttp import web

from vllm_monitor.clock import ManualClock, SystemClock
from vllm_monitor.collectors.http_session import Connections
from vllm_monitor.collectors.probes import TargetProbe
from vllm_monitor.errors import ConfigurationError

PAGE = b"# TYPE a gauge\na 1\nb 2.5\n"
KEY = "sk-very-secret"
Result = TypeVar("Result")
Question = Callable[[TargetProbe], Awaitable[Result]]


def ask(url_of: Any, question: Question[Result], **options: Any) -> Result:
    """Start a server, ask it one question, stop it."""

    async def run() -> Result:
        async with url_of as url, Connections() as connections:
            probe = TargetProbe(url, clock=SystemClock(), connections=connections, **options)
            return await question(probe)

    return asyncio.run(run())


def answering(body: bytes, **arguments: Any) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=body, **arguments)

    return handler


def talking(*parts: bytes, end: str = "close") -> Callable[..., Awaitable[None]]:
    """A server that reads a request, sends these bytes and then closes, resets or hangs."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
        if end == "hang":
            await asyncio.sleep(30)
        elif end == "reset":
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return talk


def test_a_good_page_with_times_and_keep_alive(serve_routes: Any) -> None:
    peers = set()

    async def metrics(request: web.Request) -> web.Response:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        assert request.headers["Accept-Encoding"] == "identity"
        return web.Response(body=PAGE)

    async def question(probe: TargetProbe) -> None:
        first, second = await probe.scrape(), await probe.scrape()
        assert first.failure is None
        assert first.status == 200
        assert first.layout is not None
        assert first.layout is second.layout
        assert [str(series) for series in first.layout.series] == ["a", "b"]
        assert first.values is not None
        assert list(first.values) == [1.0, 2.5]
        assert first.target == probe.url
        assert first.timestamp <= first.visible_at <= second.timestamp + 0.01
        assert first.latency_seconds > 0

    ask(serve_routes({"/metrics": metrics}), question)
    assert len(peers) == 1


def test_times_come_from_the_clock(serve_routes: Any) -> None:
    clock = ManualClock(start=1000.0)

    async def metrics(_: web.Request) -> web.Response:
        clock.advance(0.25)
        return web.Response(body=PAGE)

    async def run() -> None:
        async with serve_routes({"/metrics": metrics}) as url, Connections() as connections:
            page = await TargetProbe(url, clock=clock, connections=connections).scrape()
            assert (page.timestamp, page.latency_seconds, page.visible_at) == (1000.0, 0.25, 1000.25)

    asyncio.run(run())


def scrape(probe: TargetProbe) -> Any:
    return probe.scrape()


@pytest.mark.parametrize(
    ("body", "kind", "word"),
    [
        (b"<html><body>Hello</body></html>", "not_metrics", "HTML"),
        (b'{"hello": 1}', "not_metrics", "JSON"),
        (b"", "not_metrics", "empty"),
        (PAGE + b"c 12", "truncated", "broke off"),
    ],
)
def test_a_body_that_is_no_page(serve_routes: Any, body: bytes, kind: str, word: str) -> None:
    page = ask(serve_routes({"/metrics": answering(body)}), scrape)
    assert page.failure.kind == kind
    assert word in page.failure.message
    assert page.status == 200
    assert page.layout is None
    assert page.values is None


@pytest.mark.parametrize(
    ("status", "word"), [(401, "--api-key"), (403, "--api-key"), (404, "path or port"), (500, "log"), (503, "serve")]
)
def test_a_status_other_than_200(serve_routes: Any, status: int, word: str) -> None:
    page = ask(serve_routes({"/metrics": answering(b"no", status=status)}), scrape)
    assert (page.status, page.failure.kind) == (status, "http")
    assert word in page.failure.message


def test_the_key_is_sent_and_never_shown(serve_routes: Any) -> None:
    async def metrics(request: web.Request) -> web.Response:
        good = request.headers.get("Authorization") == f"Bearer {KEY}"
        return web.Response(body=PAGE) if good else web.Response(status=401)

    assert ask(serve_routes({"/metrics": metrics}), scrape, api_key=KEY).failure is None
    refused = ask(serve_routes({"/metrics": metrics}), scrape, api_key=KEY + "x")
    assert "not accepted" in refused.failure.message
    assert KEY not in repr(refused)

    async def show(probe: TargetProbe) -> str:
        return repr(probe)

    assert KEY not in ask(serve_routes({}), show, api_key=KEY)
    with pytest.raises(ConfigurationError) as caught:
        ask(serve_routes({}), show, api_key=f"{KEY}\nX-Evil: 1")
    assert KEY not in str(caught.value)


def test_redirects_stay_on_the_server(serve_routes: Any) -> None:
    seen: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        seen.append(str(request.headers))
        return web.Response(body=PAGE)

    async def run() -> None:
        async with serve_routes({"/metrics": elsewhere}) as other:
            routes = {
                "/metrics": answering(b"", status=307, headers={"Location": "/metrics/"}),
                "/metrics/": answering(PAGE),
                "/away/metrics": answering(b"", status=302, headers={"Location": f"{other}/metrics"}),
                "/loop/metrics": answering(b"", status=302, headers={"Location": "/loop/metrics"}),
            }
            async with serve_routes(routes) as url, Connections() as connections:
                for path, kind in (("", None), ("/away", "http"), ("/loop", "http")):
                    probe = TargetProbe(url + path, clock=SystemClock(), connections=connections, api_key=KEY)
                    failure = (await probe.scrape()).failure
                    assert (failure and failure.kind) == kind

    asyncio.run(run())
    assert seen == []


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


@pytest.mark.parametrize(
    ("talk", "kinds"),
    [
        (talking(end="close"), {"reset"}),
        (talking(end="reset"), {"reset"}),
        (talking(HEAD + b"Content-Length: 500\r\n\r\n" + PAGE, end="close"), {"truncated"}),
        (talking(HEAD + b"Content-Length: 500\r\n\r\n" + PAGE, end="reset"), {"truncated", "reset"}),
        (talking(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\na 1\nb\r\n", end="close"), {"truncated"}),
        (talking(HEAD + b"Content-Length: 500\r\n\r\n" + PAGE, end="hang"), {"timeout"}),
        (talking(end="hang"), {"timeout"}),
        (talking(b"220 smtp.example.com ESMTP\r\n", end="close"), {"other"}),
        (talking(HEAD + b"X-Long: " + b"x" * 100_000 + b"\r\n\r\n"), {"other"}),
        (talking(HEAD + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope"), {"other"}),
        (talking(HEAD + b"Content-Encoding: br\r\nContent-Length: 4\r\n\r\nnope"), {"other"}),
    ],
)
def test_a_connection_that_goes_wrong(serve_raw: Any, talk: Any, kinds: set[str]) -> None:
    page = ask(serve_raw(talk), scrape, timeout_seconds=0.5)
    assert page.failure.kind in kinds
    assert page.failure.message.endswith(tuple("abcdefghijklmnopqrstuvwxyz?.)'"))
    assert page.latency_seconds < 5


def test_a_slow_drip_cannot_outlast_the_deadline(serve_raw: Any) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"Content-Length: 1000000\r\n\r\n")
        while True:
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.01)

    page = ask(serve_raw(drip), scrape, timeout_seconds=0.3)
    assert page.failure.kind == "timeout"
    assert "0.3 s" in page.failure.message


def test_an_endless_body_costs_bounded_memory(serve_raw: Any) -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"\r\n")
        block = b"a_metric_with_a_name 1\n" * 4096
        while True:
            writer.write(block)
            sent += len(block)
            await writer.drain()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    page = ask(serve_raw(endless), scrape, timeout_seconds=20, max_page_bytes=4 * 2**20)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert page.failure.kind == "too_large"
    assert "4 MiB" in page.failure.message
    assert page.status == 200
    assert sent < 32 * 2**20
    assert after - before < 64 * 1024


def test_a_page_that_announces_100_mb_is_not_read(serve_raw: Any) -> None:
    page = ask(serve_raw(talking(HEAD + b"Content-Length: 100000000\r\n\r\n", end="hang")), scrape)
    assert page.failure.kind == "too_large"
    assert page.latency_seconds < 2


def test_a_compressed_page_is_read_although_not_asked_for(serve_raw: Any) -> None:
    body = gzip.compress(PAGE)
    head = HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
    page = ask(serve_raw(talking(head % len(body) + body)), scrape)
    assert list(page.values) == [1.0, 2.5]
    cut = body[:-9]
    page = ask(serve_raw(talking(head % len(cut) + cut)), scrape)
    assert page.failure.kind == "truncated"


def test_a_gzip_bomb_is_stopped(serve_raw: Any) -> None:
    bomb = gzip.compress(b"0" * (64 * 2**20))
    head = HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    page = ask(serve_raw(talking(head + bomb)), scrape, max_page_bytes=2**20)
    assert page.failure.kind == "too_large"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


def test_nobody_listens(free_port: int) -> None:
    page = ask(given(f"http://127.0.0.1:{free_port}"), scrape)
    assert page.failure.kind == "refused"
    assert page.status is None
    assert "nobody listens" in page.failure.message


def test_a_name_that_does_not_exist() -> None:
    page = ask(given("http://no-such-host.invalid:8000"), scrape, timeout_seconds=5)
    assert page.failure.kind in {"dns", "timeout"}


class Tls:
    """An authority, and a server's context with a certificate of it."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(self.context)
        self.ca_file = str(folder / "ca.pem")
        authority.cert_pem.write_to_path(self.ca_file)


def test_https_with_a_private_authority(serve_routes: Any, tmp_path: Path) -> None:
    tls = Tls(tmp_path)
    routes = {"/metrics": answering(PAGE)}
    untrusted = ask(serve_routes(routes, tls.context), scrape)
    assert untrusted.failure.kind == "tls"
    assert "--ca-file" in untrusted.failure.message
    assert "--insecure" in untrusted.failure.message
    assert ask(serve_routes(routes, tls.context), scrape, ca_file=tls.ca_file).failure is None
    assert ask(serve_routes(routes, tls.context), scrape, insecure=True).failure is None
    with pytest.raises(ConfigurationError, match="cannot be used"):
        ask(serve_routes(routes), scrape, ca_file=str(tmp_path / "missing.pem"))


def test_http_and_https_mixed_up(serve_routes: Any, tmp_path: Path) -> None:
    async def run() -> None:
        tls = Tls(tmp_path)
        routes = {"/metrics": answering(PAGE)}
        async with (
            serve_routes(routes) as plain,
            serve_routes(routes, tls.context) as secure,
            Connections() as connections,
        ):
            wrong = TargetProbe(plain.replace("http:", "https:"), clock=SystemClock(), connections=connections)
            failure = (await wrong.scrape()).failure
            assert failure is not None
            assert failure.kind == "tls"
            assert "http://" in failure.message
            wrong = TargetProbe(secure.replace("https:", "http:"), clock=SystemClock(), connections=connections)
            failure = (await wrong.scrape()).failure
            assert failure is not None
            assert failure.kind in {"other", "reset", "http"}

    asyncio.run(run())


def test_health_takes_any_status_for_an_answer(serve_routes: Any, free_port: int) -> None:
    def health(probe: TargetProbe) -> Any:
        return probe.health()

    ok = ask(serve_routes({"/health": answering(b"")}), health)
    assert (ok.status, ok.failure) == (200, None)
    dead = ask(serve_routes({"/health": answering(b"", status=503)}), health)
    assert (dead.status, dead.failure) == (503, None)
    gone = ask(given(f"http://127.0.0.1:{free_port}"), health)
    assert gone.status is None
    assert gone.failure.kind == "refused"


def test_version_models_and_load(serve_routes: Any) -> None:
    routes = {
        "/version": answering(b'{"version": "0.32.0"}'),
        "/v1/models": answering(b'{"data": [{"id": "a"}, {"id": 7}, "x", {"id": "b"}]}'),
        "/load": answering(b'{"server_load": 4}'),
    }

    async def question(probe: TargetProbe) -> tuple[Any, Any]:
        return await probe.version(), await probe.load()

    version, load = ask(serve_routes(routes), question)
    assert (version.version, version.models, load.server_load) == ("0.32.0", ("a", "b"), 4.0)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'"x"', b"{", b"[" * 100_000, b'{"version": 7, "data": {}, "server_load": true}', b"\xff"]
)
def test_nonsense_in_small_answers_is_no_answer(serve_routes: Any, body: bytes) -> None:
    routes = dict.fromkeys(("/version", "/v1/models", "/load", "/is_paused"), answering(body))

    async def question(probe: TargetProbe) -> tuple[Any, Any, Any]:
        return await probe.version(), await probe.load(), await probe.is_paused()

    version, load, paused = ask(serve_routes(routes), question)
    assert (version.version, version.models, load.server_load, paused.is_paused) == (None, (), None, None)


def test_a_missing_pause_route_is_asked_for_again_only_rarely(serve_routes: Any) -> None:
    asked = 0
    exists = False

    async def paused(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.json_response({"is_paused": True}) if exists else web.Response(status=404)

    async def run() -> None:
        nonlocal exists
        clock = ManualClock()
        async with serve_routes({"/is_paused": paused}) as url, Connections() as connections:
            probe = TargetProbe(url, clock=clock, connections=connections)
            for _ in range(5):
                assert (await probe.is_paused()).is_paused is None
            assert asked == 1
            exists = True
            clock.advance(301)
            assert (await probe.is_paused()).is_paused is True
            exists = False
            await probe.is_paused()
            exists = True
            probe.server_restarted()
            assert (await probe.is_paused()).is_paused is True

    asyncio.run(run())


def given(url: str) -> Any:
    """A server that somebody else runs, or nobody."""

    class Given:
        async def __aenter__(self) -> str:
            return url

        async def __aexit__(self, *_: object) -> None:
            return None

    return Given()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
