from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from vllm_monitor.clock import SystemClock
from vllm_monitor.collectors.http_session import Connections
from vllm_monitor.collectors.probes import TargetProbe
from vllm_monitor.records import CanaryObservation

TOKEN = b'data: {"id":"cmpl-1","choices":[{"index":0,"text":"a","finish_reason":"length"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def canary(serve_routes: Any, *parts: bytes, status: int = 200, hang: bool = False) -> CanaryObservation:
    async def completions(request: web.Request) -> web.StreamResponse:
        wanted = await request.json()
        assert (wanted["model"], wanted["max_tokens"], wanted["stream"]) == ("m", 1, True)
        response = web.StreamResponse(status=status, headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        if hang:
            await asyncio.sleep(10)
        return response

    async def run() -> CanaryObservation:
        async with serve_routes({"POST /v1/completions": completions}) as url, Connections() as connections:
            probe = TargetProbe(url, clock=SystemClock(), connections=connections)
            return await probe.canary("m", timeout_seconds=0.5 if hang else 5.0)

    return asyncio.run(run())


@pytest.mark.parametrize(
    "parts",
    [
        (TOKEN, DONE),
        (TOKEN[:20], TOKEN[20:] + DONE),
        (TOKEN.replace(b"\n", b"\r\n") + DONE.replace(b"\n", b"\r\n"),),
        (b": ping\n\n", TOKEN, DONE.strip()),
        (json.dumps({"choices": [{"text": "a", "finish_reason": "length"}]}).encode(),),
    ],
)
def test_a_token_arrives(serve_routes: Any, parts: tuple[bytes, ...]) -> None:
    seen = canary(serve_routes, *parts)
    assert seen.failure is None
    assert seen.ok
    assert seen.status == 200
    assert seen.time_to_first_token_seconds is not None
    assert 0 < seen.time_to_first_token_seconds <= seen.latency_seconds


@pytest.mark.parametrize(
    ("parts", "kind", "word"),
    [
        ((b'data: {"error": {"message": "EngineCore encountered an issue."}}\n\n', DONE), "http", "EngineCore"),
        ((TOKEN, b'data: {"error": "late"}\n\n', DONE), "http", "late"),
        ((TOKEN.replace(b"length", b"abort"), DONE), "other", "aborted"),
        ((TOKEN,), "truncated", "broke off"),
        ((), "truncated", "broke off"),
        ((DONE,), "other", "without a token"),
        ((b"data: nonsense\n\n", DONE), "other", "no JSON"),
        ((b"data: " + b"[" * 100_000 + b"\n\n", DONE), "other", "no JSON"),
        ((b"<html>", b"</html>"), "truncated", "broke off"),
        ((b"data: x" * 300_000,), "too_large", "does not end"),
    ],
)
def test_errors_inside_a_good_status_are_failures(
    serve_routes: Any, parts: tuple[bytes, ...], kind: str, word: str
) -> None:
    seen = canary(serve_routes, *parts)
    assert not seen.ok
    assert seen.status == 200
    assert seen.failure is not None
    assert seen.failure.kind == kind
    assert word in seen.failure.message


def test_a_stall_after_the_headers_is_a_time_out(serve_routes: Any) -> None:
    seen = canary(serve_routes, hang=True)
    assert not seen.ok
    assert seen.status == 200
    assert seen.failure is not None
    assert seen.failure.kind == "timeout"
    assert seen.time_to_first_token_seconds is None


def test_a_refusal(serve_routes: Any) -> None:
    seen = canary(serve_routes, b'{"error": "busy"}', status=503)
    assert (seen.ok, seen.status) == (False, 503)
    assert seen.failure is not None
    assert seen.failure.kind == "http"
