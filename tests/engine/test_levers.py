"""Levers, routes and gate, around a client that behaves as vLLM's, or does not."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_monitor_engine import levers as levers_module
from vllm_monitor_engine.admission import AimdLimit, AimdSettings
from vllm_monitor_engine.levers import LeverError, Levers
from vllm_monitor_engine.middleware import Gate, GateState, prompt_hash
from vllm_monitor_engine.routes import MOUNT_PATH, Routes
from vllm_monitor_engine.settings import EngineSettings


class Client:
    """As vLLM's engine client; ``hangs`` holds the calls that are never answered."""

    def __init__(self) -> None:
        self.paused = False
        self.calls: list[str] = []
        self.hangs: set[str] = set()
        self.output_processor = SimpleNamespace(request_states={})

    def add(self, name: str, arrived: float, *, prefilling: bool = False) -> None:
        self.output_processor.request_states[f"{name}-x"] = SimpleNamespace(
            external_req_id=name,
            prompt_len=7,
            is_prefilling=prefilling,
            stats=SimpleNamespace(arrival_time=arrived, num_generation_tokens=3),
        )

    async def _do(self, what: str) -> None:
        self.calls.append(what)
        if what in self.hangs:
            await asyncio.Event().wait()

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        assert not clear_cache
        await self._do(f"pause {mode}")
        self.paused = True

    async def resume_generation(self) -> None:
        await self._do("resume")
        self.paused = False

    async def is_paused(self) -> bool:
        return self.paused

    async def abort(self, ids: list[str], internal: bool = False) -> None:
        assert internal
        await self._do("abort")
        for name in ids:
            self.output_processor.request_states.pop(name, None)

    async def reset_prefix_cache(self) -> bool:
        await self._do("reset")
        return not self.output_processor.request_states


def play(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 20))


def make(client: Any = None, gate: GateState | None = None, **further: Any) -> Levers:
    return Levers(client or Client(), gate or GateState(), wall=lambda: 1_000.0, **further)


def test_a_pause_ends_by_itself() -> None:
    async def story() -> None:
        client, told = Client(), []
        levers = make(client, note=lambda kind, **facts: told.append((facts["lever"], facts.get("by_itself", False))))
        assert await levers.pause("keep", 0.1) == {"done": True, "is_paused": True, "ends_in_seconds": 0.1}
        await levers.pause("keep", 0.2)
        assert client.calls == ["pause keep"], "it is paused already"
        assert (await levers.status())["ends_in_seconds"]["pause"] > 0.1
        await asyncio.sleep(0.4)
        assert not client.paused
        assert told[-1] == ("resume", True)
        assert (await levers.status())["ends_in_seconds"] == {}

    play(story)


def test_a_pause_that_is_answered_too_late_is_ended_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levers_module, "CALL_SECONDS", 0.05)

    async def story() -> None:
        client = Client()
        client.hangs = {"pause keep", "resume"}
        levers = make(client)
        with pytest.raises(LeverError, match="did not answer the pause"):
            await levers.pause("keep", 0.1)
        client.paused, client.hangs = True, set()  # it was applied late, as a frozen engine does after its thaw
        await asyncio.sleep(0.4)
        assert not client.paused

    play(story)


def test_resume_takes_the_end_away_and_may_come_twice() -> None:
    async def story() -> None:
        client = Client()
        levers = make(client)
        await levers.pause("wait", 60)
        assert (await levers.resume())["done"]
        assert (await levers.resume())["done"]
        assert (await levers.status())["ends_in_seconds"] == {}

    play(story)


def test_abort_by_id_and_by_age() -> None:
    async def story() -> None:
        client = Client()
        for name, arrived in (("old", 900.0), ("older", 800.0), ("new", 999.0)):
            client.add(name, arrived)
        told: list[dict[str, Any]] = []
        levers = make(client, note=lambda kind, **facts: told.append({"kind": kind, **facts}))
        assert [one["id"] for one in levers.requests()] == ["older", "old", "new"]
        assert levers.requests()[0]["age_seconds"] == 200.0
        nobody = await levers.abort(ids=["nobody"])
        assert nobody == {"done": True, "aborted": [], "asked": 0, "not_in_flight": ["nobody"]}
        assert (await levers.abort(older_than_seconds=50, most=1))["aborted"] == ["older-x"]
        assert (await levers.abort(ids=["old", "new-x"]))["aborted"] == ["old-x", "new-x"]
        assert [one["requests"] for one in told] == [0, 1, 2]
        with pytest.raises(LeverError, match="say either"):
            await levers.abort()

    play(story)


def test_abort_by_the_id_that_the_client_of_a_completion_was_told() -> None:
    async def story() -> None:
        client = Client()
        for name in ("cmpl-ab-0", "cmpl-ab-1", "cmpl-abc-0", "chatcmpl-ab-0"):
            client.add(name, 900.0)
        levers = make(client)
        assert (await levers.abort(ids=["cmpl-ab"]))["aborted"] == ["cmpl-ab-0-x", "cmpl-ab-1-x"]
        assert (await levers.abort(ids=["chatcmpl-ab"]))["asked"] == 0, "that is the id of no chat"

    play(story)


def test_abort_by_id_finds_also_the_newest_of_many() -> None:
    async def story() -> None:
        client = Client()
        for number in range(1_500):
            client.add(f"r{number}", 900.0 - number)
        assert (await make(client).abort(ids=["r0"]))["aborted"] == ["r0-x"]

    play(story)


def test_whatever_comes_together_a_pause_has_an_end() -> None:
    async def story() -> None:
        for _ in range(200):
            client = Client()
            levers = make(client)
            together = [
                levers.pause(for_seconds=0.02),
                levers.resume(),
                levers.pause(for_seconds=0.01),
                levers.resume(),
            ]
            random.shuffle(together)
            await asyncio.gather(*together)
            for _ in range(100):
                if not client.paused:
                    break
                await asyncio.sleep(0.005)
            assert not client.paused
            assert not (await levers.status())["is_paused"]

    play(story)


def test_a_resume_that_does_not_come_through_leaves_the_end_of_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levers_module, "CALL_SECONDS", 0.02)

    async def story() -> None:
        client = Client()
        levers = make(client)
        await levers.pause(for_seconds=0.1)
        client.hangs.add("resume")
        with pytest.raises(LeverError, match="did not answer"):
            await levers.resume()
        client.hangs.clear()
        assert (await levers.status())["ends_in_seconds"]["pause"] > 0
        await asyncio.sleep(0.3)
        assert not client.paused

    play(story)


def test_the_status_of_an_engine_that_does_not_answer_is_told_at_once() -> None:
    async def story() -> None:
        client = Client()
        client.is_paused = lambda: asyncio.sleep(60)  # type: ignore[method-assign, assignment, return-value]
        client.add("a", 900.0)
        began = asyncio.get_running_loop().time()
        status = await make(client).status()
        assert (status["is_paused"], status["in_flight"]) == (None, 1)
        assert asyncio.get_running_loop().time() - began < 2

    play(story)


def test_what_a_version_has_not_is_said() -> None:
    async def story() -> None:
        levers = make(SimpleNamespace())
        assert (await levers.status())["levers"] == ["admission_limit", "refuse_prompt"]
        assert levers.requests() == []
        with pytest.raises(LeverError, match="no pause") as caught:
            await levers.pause()
        assert caught.value.status == 501

    play(story)


def test_where_no_lever_says_otherwise_the_operators_limits_hold() -> None:
    async def scenario() -> None:
        gate = GateState(EngineSettings(admission_limit=9, client_limit=4, refused_prompts=("a" * 64,)))
        levers = Levers(Client(), gate)
        assert (gate.limit, gate.client_limit) == (9, 4)
        await levers.set_admission_limit(5, 0.1)
        assert (gate.limit, gate.client_limit) == (5, 4)
        await asyncio.sleep(0.3)
        assert (gate.limit, gate.client_limit) == (9, 4)
        await levers.set_admission_limit(5, 60)
        await levers.set_admission_limit(None)
        assert (gate.limit, gate.client_limit) == (9, 4)
        assert gate.all_refused() == {"a" * 64}

    asyncio.run(scenario())


def test_a_limit_ends_by_itself_and_can_be_taken_away() -> None:
    async def story() -> None:
        gate = GateState()
        levers = make(gate=gate)
        await levers.set_admission_limit(5, 0.1, client_limit=2)
        assert (gate.limit, gate.client_limit) == (5, 2)
        await asyncio.sleep(0.3)
        assert (gate.limit, gate.client_limit) == (None, None)
        await levers.set_admission_limit(3, 60)
        assert (await levers.set_admission_limit(None))["before"] == 3
        assert gate.limit is None
        for wrong in (-1, 1.5, True, "many"):
            with pytest.raises(LeverError, match="whole number"):
                await levers.set_admission_limit(wrong)  # type: ignore[arg-type]
        for wrong_time in (0, -1, 1e9, float("nan"), "long", True):
            with pytest.raises(LeverError, match="for_seconds"):
                await levers.set_admission_limit(1, wrong_time)  # type: ignore[arg-type]

    play(story)


# -- the gate --------------------------------------------------------------------------------------------------------


async def ask(
    app: Any, path: str, body: bytes = b"{}", method: str = "POST", client: str = "1.2.3.4", root_path: str = ""
) -> Any:
    sent: list[Any] = []
    parts = [body[:3], body[3:]]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "root_path": root_path, "client": (client, 1)}
    await app({**scope, "headers": []}, receive, send)
    content = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(content or b"{}")


class Server:
    """Answers 200, with the body that it was sent, once it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.ids: list[bytes] = []

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                break
        self.ids += [value for name, value in scope["headers"] if name == b"x-request-id"]
        await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


def test_a_burst_does_not_slip_through_together() -> None:
    async def story() -> None:
        gate, server = GateState(), Server()
        gate.limit = 3
        app = Gate(server, gate)
        asked = [asyncio.create_task(ask(app, "/v1/completions", b'{"a": 1}')) for _ in range(10)]
        await asyncio.sleep(0.05)
        assert gate.in_flight == 3
        server.go.set()
        answers = await asyncio.gather(*asked)
        assert sorted(status for status, _, _ in answers) == [200] * 3 + [503] * 7
        refused = next(answer for answer in answers if answer[0] == 503)
        assert refused[1][b"retry-after"] == b"1"
        assert refused[2]["error"]["code"] == 503
        assert next(answer for answer in answers if answer[0] == 200)[2] == {"a": 1}
        assert (gate.in_flight, gate.ended, gate.refused["limit"]) == (0, 3, 7)
        assert len(set(server.ids)) == 3, "each has an id by which it can be aborted"

    play(story)


def test_only_generation_is_counted() -> None:
    async def story() -> None:
        gate, server = GateState(), Server()
        server.go.set()
        gate.limit = 0
        app = Gate(server, gate)
        assert (await ask(app, "/health", method="GET"))[0] == 200
        assert (await ask(app, "/v1/models", method="GET"))[0] == 200
        assert (await ask(app, f"{MOUNT_PATH}/resume"))[0] == 200
        assert (await ask(app, "/v1/chat/completions"))[0] == 503

    play(story)


def test_one_client_does_not_take_it_all() -> None:
    async def story() -> None:
        gate, server = GateState(), Server()
        gate.client_limit = 1
        app = Gate(server, gate)
        first = asyncio.create_task(ask(app, "/v1/completions"))
        await asyncio.sleep(0.01)
        assert (await ask(app, "/v1/completions"))[0] == 503
        server.go.set()
        assert (await ask(app, "/v1/completions", client="5.6.7.8"))[0] == 200
        await first
        assert gate.by_client == {}

    play(story)


def test_a_prompt_that_does_harm_is_refused_whatever_is_around_it() -> None:
    async def story() -> None:
        gate, server = GateState(), Server()
        server.go.set()
        app = Gate(server, gate)
        levers = make(gate=gate)
        levers.refuse_prompt(prompt_hash("poison"), 60)
        assert (await ask(app, "/v1/completions", b'{"max_tokens": 9, "prompt": "poison"}'))[0] == 503
        assert (await ask(app, "/v1/completions", b'{"prompt": "poison "}')) == (200, {}, {"prompt": "poison "})
        for hidden in (b'{"prompt": ["fine", "poison"]}', b'{"messages": [], "prompt": "poison"}'):
            assert (await ask(app, "/v1/completions", hidden))[0] == 503
        assert (await ask(app, "/invocations", b'{"prompt": "poison"}'))[0] == 503
        assert (await ask(app, "/v1/completions", b'{"x": 1}'))[0] == 200
        for wrong in ("", "x" * 64, "a" * 63, None):
            with pytest.raises(LeverError):
                levers.refuse_prompt(wrong)  # type: ignore[arg-type]

    play(story)


def test_two_gates_count_a_request_once() -> None:
    async def story() -> None:
        gate, server = GateState(EngineSettings(admission_limit=2)), Server()
        app = Gate(Gate(server, gate), gate)
        asked = [asyncio.create_task(ask(app, "/v1/completions", b"{}")) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert gate.in_flight == 2
        server.go.set()
        assert sorted([(await one)[0] for one in asked]) == [200, 200, 503]

    play(story)


@pytest.mark.parametrize("path", ["/v1/completions", "/invocations", "/v1/chat/completions/batch", "/v1/completions/"])
@pytest.mark.parametrize("root", ["", "/under"])
def test_no_way_to_generate_is_beside_the_gate(path: str, root: str) -> None:
    async def story() -> None:
        server = Server()
        server.go.set()
        app = Gate(server, GateState(EngineSettings(admission_limit=0)))
        assert (await ask(app, root + path, b"{}", root_path=root))[0] == 503
        assert (await ask(app, f"{root}/v1/embeddings", b"{}", root_path=root))[0] == 200

    play(story)


def test_what_a_lever_refuses_ends_and_what_the_operator_refuses_does_not() -> None:
    gate = GateState(EngineSettings(refused_prompts=("a" * 64,)))
    gate.refuse_prompt("a" * 64, 10.0)
    for number in range(1_500):
        gate.refuse_prompt(f"{number:064x}", 10.0)
    assert "a" * 64 in gate.all_refused()
    assert gate.refuses_prompts(11.0)
    assert gate.all_refused() == {"a" * 64}


def test_a_server_that_fails_leaves_no_request_behind() -> None:
    async def story() -> None:
        async def broken(*_: Any) -> None:
            raise RuntimeError

        gate = GateState()
        with pytest.raises(RuntimeError):
            await ask(Gate(broken, gate), "/v1/completions")
        assert (gate.in_flight, gate.by_client) == (0, {})

    play(story)


# -- the routes ------------------------------------------------------------------------------------------------------


def test_routes_answer_in_json() -> None:
    async def story() -> None:
        client = Client()
        client.add("a", 990.0)
        routes = Routes()
        assert (await ask(routes, f"{MOUNT_PATH}/status", method="GET"))[0] == 503
        routes.levers = make(client)
        assert (await ask(routes, f"{MOUNT_PATH}/status", method="GET"))[2]["in_flight"] == 1
        assert (await ask(routes, f"{MOUNT_PATH}/requests", method="GET"))[2]["requests"][0]["id"] == "a"
        status, _, answer = await ask(routes, f"{MOUNT_PATH}/pause", b'{"mode": "keep", "for_seconds": 5}')
        assert (status, answer["is_paused"]) == (200, True)
        assert (await ask(routes, f"{MOUNT_PATH}/resume"))[2]["is_paused"] is False
        assert (await ask(routes, f"{MOUNT_PATH}/abort", b'{"ids": ["a"]}'))[2]["aborted"] == ["a-x"]
        assert (await ask(routes, f"{MOUNT_PATH}/reset-prefix-cache"))[2] == {"done": True}
        assert (await ask(routes, f"{MOUNT_PATH}/admission-limit", b'{"limit": 4}'))[2]["admission_limit"] == 4

    play(story)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/nowhere", b"", 404, "there is no such route"),
        ("/pause", b"[]", 400, "no JSON object"),
        ("/pause", b"{", 400, "no JSON"),
        ("/pause", b'{"how": 1}', 400, "there is no 'how' here; there are mode"),
        ("/pause", b'{"mode": "hard"}', 400, "keep, wait, abort"),
        ("/pause", b'{"for_seconds": NaN}', 400, "for_seconds"),
        ("/admission-limit", b"{}", 400, "say limit"),
        ("/abort", b'{"ids": null}', 400, "say either"),
        ("/abort", b'{"ids": 5}', 400, "list of texts"),
        ("/abort", b'{"older_than_seconds": "long"}', 400, "a number from 0"),
        ("/abort", b'{"older_than_seconds": 1, "most": 0}', 400, "a whole number from 1"),
        ("/admission-limit", b'{"limit": 5, "adaptive": "yes"}', 400, "true or false"),
        ("/admission-limit", b'{"limit": 99999999999}', 400, "a whole number from 0 to"),
        ("/refuse-prompt", b"{}", 400, "SHA-256"),
        ("/status", b"", 404, "there is no such route"),
        ("/pause", b"x" * (2 << 20), 413, "too long"),
        ("/pause", b"[" * 100_000, 400, "no JSON"),
    ],
)
def test_what_makes_no_sense_is_told(path: str, body: bytes, status: int, words: str) -> None:
    async def story() -> None:
        client = Client()
        client.add("a", 900.0)
        routes = Routes()
        routes.levers = make(client)
        got, _, answer = await ask(routes, MOUNT_PATH + path, body)
        assert got == status
        assert words in answer["error"]
        assert client.calls == []

    play(story)


# -- the adaptive limit ----------------------------------------------------------------------------------------------


def test_the_limit_finds_what_a_server_can_do() -> None:
    """A server that serves 10 a second, and 50 that come: the queue stays short, and the server busy."""
    limit, in_flight, waits = AimdLimit(AimdSettings(), 100), 100.0, []
    busy = 0
    for tick in range(2_400):
        now = 0.25 * tick
        served = min(in_flight, 2.5)
        in_flight -= served
        room = max(0.0, limit.limit - in_flight)
        in_flight += min(room, 12.5)
        waiting = max(0.0, in_flight - 8)  # eight run at once
        limit.look(now, in_flight=int(in_flight), waiting=waiting, served_per_second=served / 0.25, kv_ratio=0.5)
        if tick > 400:
            waits.append(waiting / 10)
            busy += served == 2.5
    assert sum(waits) / len(waits) < 1.2
    assert max(waits) < 3.0
    assert busy > 0.97 * len(waits)


def test_the_limit_stays_within_its_bounds() -> None:
    limit = AimdLimit(AimdSettings(least=3, most=50), 1_000)
    assert limit.limit == 50
    for tick in range(200):
        limit.look(float(tick), in_flight=50, waiting=500, served_per_second=0.0, kv_ratio=1.0)
    assert limit.limit == 3
    for tick in range(200, 2_000):
        limit.look(float(tick), in_flight=50, waiting=0, served_per_second=9.0, kv_ratio=0.1)
    assert limit.limit == 50


def test_a_limit_that_nobody_needs_does_not_rise() -> None:
    limit = AimdLimit(AimdSettings(), 20)
    for tick in range(1_000):
        limit.look(float(tick), in_flight=3, waiting=0, served_per_second=3.0, kv_ratio=0.1)
    assert limit.limit == 20
