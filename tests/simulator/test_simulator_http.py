"""The simulated server behind a real port, in real time (hurried)."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from vllm_monitor.errors import ConfigurationError
from vllm_monitor.simulator import LoadSettings, ServerSettings, Simulator, parse_fault
from vllm_monitor.simulator.server import FrontOptions, SimulatorServer

Test = Callable[[aiohttp.ClientSession, Simulator], Awaitable[None]]
_HURRY = 10.0


@asynccontextmanager
async def _serving(
    simulator: Simulator, **options: Any
) -> AsyncIterator[tuple[aiohttp.ClientSession, SimulatorServer]]:
    server = SimulatorServer(simulator, FrontOptions(port=0, **{"speed": _HURRY, **options}))
    await server.start()
    running = asyncio.create_task(server.run())
    try:
        timeout = aiohttp.ClientTimeout(total=10.0)
        async with aiohttp.ClientSession(server.url, timeout=timeout) as session:
            yield session, server
    finally:
        server.stop()
        await running


def _serve(test: Test, *faults: str, rate: float = 0.0, **options: Any) -> None:
    async def body() -> None:
        simulator = Simulator(
            ServerSettings(load=LoadSettings(requests_per_second=rate), model="tiny"),
            faults=[parse_fault(fault) for fault in faults],
        )
        async with _serving(simulator, **options) as (session, _):
            await test(session, simulator)

    asyncio.run(body())


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10.0):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def _events(response: aiohttp.ClientResponse) -> list[str]:
    text = (await response.read()).decode()
    return [line.removeprefix("data: ") for line in text.splitlines() if line]


def _wish(max_tokens: int, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "Hello there", "max_tokens": max_tokens, **more}


def test_metrics_health_version_models_and_load() -> None:
    async def test(session: aiohttp.ClientSession, simulator: Simulator) -> None:
        async with session.get("/health") as answer:
            assert answer.status == 200
            assert await answer.read() == b""
        async with session.get("/version") as answer:
            assert await answer.json() == {"version": "0.32.0"}
        async with session.get("/v1/models") as answer:
            assert [model["id"] for model in (await answer.json())["data"]] == ["tiny"]
        async with session.get("/load") as answer:
            assert await answer.json() == {"server_load": 0}
        async with session.get("/metrics") as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=1.0.0")
            families = {family.name: family for family in text_string_to_metric_families(await answer.text())}
        http = {tuple(s.labels.values()): s.value for s in families["http_requests"].samples}
        assert http["/v1/models", "GET", "2xx"] == 1
        assert "vllm:kv_cache_usage_perc" in families

    _serve(test, rate=2.0)


def test_a_completion_has_the_tokens_it_asked_for() -> None:
    async def test(session: aiohttp.ClientSession, simulator: Simulator) -> None:
        async with session.post("/v1/completions", json=_wish(7)) as answer:
            assert answer.status == 200
            body = await answer.json()
        assert body["usage"]["completion_tokens"] == 7
        assert body["choices"][0]["finish_reason"] == "length"
        assert len(body["choices"][0]["text"].split()) == 7
        assert simulator.life is not None
        assert simulator.life.statistics.generation_tokens == 7

    _serve(test)


def test_a_stream_delivers_tokens_one_by_one_and_ends_with_done() -> None:
    async def test(session: aiohttp.ClientSession, simulator: Simulator) -> None:
        async with session.post("/v1/completions", json=_wish(5, stream=True)) as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            events = await _events(answer)
        assert events[-1] == "[DONE]"
        choices = [json.loads(event)["choices"][0] for event in events[:-1]]
        assert [choice["finish_reason"] for choice in choices] == [None] * 4 + ["length"]
        assert all(choice["text"] for choice in choices)

    _serve(test)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_aborts_its_request(stream: bool) -> None:
    async def test(session: aiohttp.ClientSession, simulator: Simulator) -> None:
        asking = asyncio.create_task(_ask(session, _wish(1900, stream=stream)))
        await _until(lambda: simulator.visible_in_flight == 1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await _until(lambda: simulator.visible_in_flight == 0)
        life = simulator.life
        assert life is not None
        await _until(lambda: life.statistics.running == 0)
        assert sum(life.statistics.finished.values()) == 0

    _serve(test, speed=1.0)


async def _ask(session: aiohttp.ClientSession, wish: dict[str, Any]) -> list[str]:
    async with session.post("/v1/completions", json=wish) as answer:
        return await _events(answer)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"no json", 400),
        (b"[1]", 400),
        (b'{"prompt": 5}', 400),
        (b'{"prompt": "x", "max_tokens": 0}', 400),
        (b'{"prompt": "x", "max_tokens": "many"}', 400),
        (b'{"prompt": "x", "max_tokens": 5000}', 400),
        (b'{"prompt": "x", "model": "other"}', 400),
        (b'{"prompt": [1, 2, 3], "max_tokens": 1}', 200),
    ],
)
def test_bad_requests_are_refused_and_counted(body: bytes, status: int) -> None:
    async def test(session: aiohttp.ClientSession, simulator: Simulator) -> None:
        async with session.post("/v1/completions", data=body) as answer:
            assert answer.status == status
        layout, values = simulator.scrape()
        counted = {
            series.label("status"): value
            for series, value in zip(layout.series, values, strict=True)
            if series.name == "http_requests_total" and series.label("handler") == "/v1/completions"
        }
        assert counted == {"2xx": 0.0, "4xx": 0.0, "5xx": 0.0} | {f"{status // 100}xx": 1.0}

    _serve(test)


def test_the_api_key_guards_v1_and_nothing_else() -> None:
    async def test(session: aiohttp.ClientSession, simulator: Simulator) -> None:
        async with session.get("/v1/models") as answer:
            assert answer.status == 401
        async with session.post("/v1/completions", json=_wish(1)) as answer:
            assert answer.status == 401
        async with session.get("/v1/models", headers={"Authorization": "Bearer secret"}) as answer:
            assert answer.status == 200
        async with session.get("/metrics") as answer:
            assert answer.status == 200

    _serve(test, api_key="secret")


def test_a_frozen_engine_answers_with_headers_and_no_tokens() -> None:
    async def test(session: aiohttp.ClientSession, simulator: Simulator) -> None:
        async with session.post("/simulator/fault", json={"fault": "freeze@0"}) as answer:
            assert (await answer.json())["active"] == ["freeze@0"] or answer.status == 200
        async with session.post("/v1/completions", json=_wish(3, stream=True)) as answer:
            assert answer.status == 200
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(answer.content.readany(), 0.3)
            async with session.get("/health") as health:
                assert health.status == 200
            async with session.delete("/simulator/fault") as cleared:
                assert (await cleared.json())["active"] == []
            assert (await _events(answer))[-1] == "[DONE]"

    _serve(test)


def test_load_counts_when_it_is_told_to() -> None:
    async def test(session: aiohttp.ClientSession, simulator: Simulator) -> None:
        asking = asyncio.create_task(_ask(session, _wish(3)))
        await _until(lambda: simulator.visible_in_flight == 1)
        async with session.get("/load") as answer:
            assert await answer.json() == {"server_load": 1}
        simulator.clear_faults()
        await asking

    _serve(test, "freeze@0", tracks_load=True)


def test_a_crash_ends_streams_with_an_error_and_closes_the_port_until_the_restart() -> None:
    async def test(session: aiohttp.ClientSession, simulator: Simulator) -> None:
        asking = asyncio.create_task(_ask(session, _wish(1900, stream=True)))
        await _until(lambda: simulator.visible_in_flight == 1)
        simulator.inject(parse_fault("crash@0+4"))
        events = await asking
        assert "EngineCore encountered an issue" in json.loads(events[-2])["error"]["message"]
        assert events[-1] == "[DONE]"
        async with session.get("/health") as answer:
            assert answer.status == 503
        async with session.post("/v1/completions", json=_wish(1)) as answer:
            assert answer.status == 500
        await _until(lambda: not simulator.reachable)
        await _refused(session)
        await _until(lambda: simulator.reachable)
        assert (await _ask(session, _wish(1, stream=True)))[-1] == "[DONE]"

    _serve(test, speed=2.0)


async def _refused(session: aiohttp.ClientSession) -> None:
    """Wait until connecting is refused: the port closes just after the simulated server goes down."""
    async with asyncio.timeout(5.0):
        while True:
            if await _is_refused(session):
                return
            await asyncio.sleep(0.01)


async def _is_refused(session: aiohttp.ClientSession) -> bool:
    try:
        async with session.get("/health"):
            return False
    except aiohttp.ClientConnectorError as error:
        return isinstance(error.os_error, ConnectionRefusedError)
    except aiohttp.ClientConnectionError:
        return False  # an open connection was cut


def test_a_slow_start_refuses_connections_until_it_is_ready() -> None:
    async def test(session: aiohttp.ClientSession, simulator: Simulator) -> None:
        assert not simulator.reachable
        await _refused(session)
        await _until(lambda: simulator.reachable)
        async with session.get("/health") as answer:
            assert answer.status == 200

    _serve(test, "slow_start@0+5")


def test_pause_and_resume_are_development_routes() -> None:
    async def development(session: aiohttp.ClientSession, simulator: Simulator) -> None:
        async with session.post("/pause?mode=keep") as answer:
            assert await answer.json() == {"status": "paused"}
        async with session.get("/is_paused") as answer:
            assert await answer.json() == {"is_paused": True}
        asking = asyncio.create_task(_ask(session, _wish(2, stream=True)))
        await _until(lambda: simulator.visible_in_flight == 1)
        begun = simulator.now_seconds
        await _until(lambda: simulator.now_seconds > begun + 1.0)
        assert not asking.done()
        async with session.post("/pause?mode=sideways") as answer:
            assert answer.status == 400
        async with session.post("/resume") as answer:
            assert answer.status == 200
        assert (await asking)[-1] == "[DONE]"
        async with session.get("/is_paused") as answer:
            assert await answer.json() == {"is_paused": False}

    async def production(session: aiohttp.ClientSession, simulator: Simulator) -> None:
        for method, route in (("GET", "/is_paused"), ("POST", "/pause"), ("POST", "/resume")):
            async with session.request(method, route) as answer:
                assert answer.status == 404

    _serve(development, dev_mode=True)
    _serve(production)


@pytest.mark.parametrize(
    "body",
    [
        {"fault": "freeze@2+5"},
        {"kind": "freeze", "start_seconds": 2, "duration_seconds": 5},
    ],
)
def test_faults_over_http_count_from_now(body: dict[str, Any]) -> None:
    async def test(session: aiohttp.ClientSession, simulator: Simulator) -> None:
        simulator.advance(100.0)
        async with session.post("/simulator/fault", json=body) as answer:
            assert answer.status == 200
        (fault,) = simulator.planned_faults
        assert 102.0 <= fault.start_seconds <= simulator.now_seconds + 2.0
        assert fault.duration_seconds == 5.0

    _serve(test, speed=0.1)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"kind": "fire"}', b'{"fault": "freeze@x"}', b'{"kind": 3}'])
def test_a_wrong_fault_over_http_is_refused(body: bytes) -> None:
    async def test(session: aiohttp.ClientSession, simulator: Simulator) -> None:
        async with session.post("/simulator/fault", data=body) as answer:
            assert answer.status == 400
            assert "freeze" in (await answer.json())["error"]
        assert simulator.active_faults == ()

    _serve(test)


def test_a_port_in_use_is_a_clear_error() -> None:
    async def body() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(ConfigurationError, match=f"port {port} on 127.0.0.1 is in use"):
                SimulatorServer(Simulator(), FrontOptions(port=port))

    asyncio.run(body())


def test_nobody_else_gets_the_port_while_it_is_closed() -> None:
    async def body() -> None:
        simulator = Simulator(faults=[parse_fault("slow_start@0")])
        async with _serving(simulator) as (_, server):
            port = int(server.url.rpartition(":")[2])
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))

    asyncio.run(body())
