"""A gate before the server: counts requests in flight, and refuses what is too much before anything of it is read.

Pure ASGI, for ``--middleware vllm_monitor_engine.middleware.Gate``, with limits from ``VLLMMON_*`` variables, or as the
endpoint plugin puts it in, with levers. What is
refused gets status 503 with ``Retry-After``, as load balancers and clients expect. What is no generation passes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

from vllm_monitor_engine.settings import EngineSettings

__all__ = ["Gate", "GateState", "gate_state", "prompt_hash", "prompt_hashes"]

_log = logging.getLogger("vllm.vllm_monitor_engine")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

GENERATION_PATHS = frozenset(
    (
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/responses",
        "/v1/messages",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/systemone",
        "/cohere/v2/chat",
        "/inference/v1/generate",
        "/invocations",
        "/generate",
    )
)
SEEN = "vllm_monitor.gate"
"""Marks a request that an outer gate of ours has let in: a second one does not count it again."""
PROMPT_NAMES = ("prompt", "messages", "input", "token_ids")
MOST_REFUSED_PROMPTS = 1_000
MOST_BODY_BYTES = 16 * 1024 * 1024


class GateState:
    """What the gate of this process lets through. For the event loop, except where it is only read.

    Args:
        settings: What the operator chose before the start: it holds where no lever says otherwise.

    Attributes:
        limit: How many generation requests may be in flight; ``None`` for any number.
        client_limit: How many of one client address; ``None`` for any number.
        refused_prompts: Hashes of prompts (:func:`prompt_hashes`) that a lever refuses, and until which monotonic time.
        retry_after_seconds: What those who are refused are told to wait.
        faults: Faults of the gate itself, which let requests pass.
    """

    def __init__(self, settings: EngineSettings | None = None) -> None:
        self._settings = settings or EngineSettings()
        self.limit: int | None
        self.client_limit: int | None
        self.reset_limits()
        self.refused_prompts: dict[str, float] = {}
        self.retry_after_seconds = 1
        self.faults = 0
        self.in_flight = 0
        self.passed = 0
        self.ended = 0
        self.refused: dict[str, int] = {"limit": 0, "client_limit": 0, "prompt": 0}
        self.by_client: dict[str, int] = {}

    def complaints(self) -> tuple[str, ...]:
        """What was wrong with the operator's variables, where no recorder says so."""
        return () if self._settings.enabled else self._settings.complaints

    def reset_limits(self) -> None:
        """Have the limits again that the operator chose before the start."""
        self.limit, self.client_limit = self._settings.admission_limit, self._settings.client_limit

    def why_refused(self, client: str) -> str | None:
        """Why the next request of this client would be refused; ``None`` when it would not."""
        if self.limit is not None and self.in_flight >= self.limit:
            return "limit"
        if self.client_limit is not None and self.by_client.get(client, 0) >= self.client_limit:
            return "client_limit"
        return None

    def refuses_prompts(self, now: float) -> bool:
        """Whether any prompt is refused now; what is over by now is forgotten."""
        for digest in [digest for digest, until in self.refused_prompts.items() if until <= now]:
            del self.refused_prompts[digest]
        return bool(self.refused_prompts or self._settings.refused_prompts)

    def all_refused(self) -> set[str]:
        """Hashes that a lever refuses, and those that the operator named before the start."""
        return {*self.refused_prompts, *self._settings.refused_prompts}

    def refuse_prompt(self, digest: str, until: float) -> None:
        """Refuse prompts with this hash until a monotonic time; beyond a thousand the oldest are forgotten."""
        self.refused_prompts.pop(digest, None)
        self.refused_prompts[digest] = until
        while len(self.refused_prompts) > MOST_REFUSED_PROMPTS:
            del self.refused_prompts[next(iter(self.refused_prompts))]


_state = GateState(EngineSettings.from_environment())


def gate_state() -> GateState:
    """The state of this process's gate."""
    return _state


class _Refusal(NamedTuple):
    """That a request is refused, and why."""

    reason: str


class Gate:
    """The middleware.

    Args:
        app: The server.
        state: What it lets through; that of this process by default.
    """

    def __init__(self, app: App, state: GateState | None = None) -> None:
        self._app = app
        self._state = state if state is not None else _state
        for complaint in self._state.complaints():
            _log.warning("vllm-monitor: %s", complaint)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request; where the gate itself fails, as if it were not there."""
        if SEEN in scope or not _is_generation(scope):
            await self._app(scope, receive, send)
            return
        scope[SEEN] = True
        client = self._enter(scope)
        if isinstance(client, _Refusal):
            await self._refuse(client.reason, send)
            return
        try:
            if self._refuses_prompts():
                body, receive = await _read_body(receive)
                if self._is_harmful(body):
                    await self._refuse("prompt", send)
                    return
            await self._app(scope, receive, send)
        finally:
            self._leave(client)

    def _enter(self, scope: MutableMapping[str, Any]) -> str | _Refusal:
        """Count the request in, before anything is awaited, so that a burst cannot slip through together."""
        client = ""
        try:
            client = _client_of(scope)
            reason = self._state.why_refused(client)
            if reason is not None:
                return _Refusal(reason)
            _give_id(scope)
        except Exception:  # it must not be the request's
            self._state.faults += 1
        self._state.in_flight += 1
        self._state.passed += 1
        self._state.by_client[client] = self._state.by_client.get(client, 0) + 1
        return client

    def _leave(self, client: str) -> None:
        state = self._state
        state.in_flight -= 1
        state.ended += 1
        left = state.by_client[client] - 1
        if left:
            state.by_client[client] = left
        else:
            del state.by_client[client]

    def _refuses_prompts(self) -> bool:
        try:
            return self._state.refuses_prompts(time.monotonic())
        except Exception:  # likewise
            self._state.faults += 1
            return False

    def _is_harmful(self, body: bytes) -> bool:
        try:
            return not prompt_hashes(body).isdisjoint(self._state.all_refused())
        except Exception:  # likewise
            self._state.faults += 1
            return False

    async def _refuse(self, reason: str, send: Send) -> None:
        self._state.refused[reason] += 1
        words = {
            "limit": "The server takes no more requests at the moment (admission limit). Try again later.",
            "client_limit": "This client has too many requests in flight. Try again when one has ended.",
            "prompt": "This prompt is refused: it did harm before.",
        }
        error = {"message": words[reason], "type": "ServiceUnavailableError", "param": None, "code": 503}
        content = json.dumps({"error": error}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            (b"retry-after", str(self._state.retry_after_seconds).encode()),
        ]
        with contextlib.suppress(OSError):  # the client is gone
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": content})


def prompt_hash(prompt: Any) -> str:
    """SHA-256, in hexadecimal digits, of a prompt as JSON without blanks, its keys in order.

    A text is hashed with its quotation marks, a chat as its whole list of messages.
    """
    return hashlib.sha256(json.dumps(prompt, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def prompt_hashes(body: bytes) -> set[str]:
    """The hashes by which a request can be refused: of its prompt, of each of several, of its body if it has none."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        request = None
    prompts = [request[name] for name in PROMPT_NAMES if name in request] if isinstance(request, dict) else []
    if not prompts:
        return {hashlib.sha256(body).hexdigest()}
    several = [one for prompt in prompts if isinstance(prompt, list) for one in prompt if isinstance(one, (str, list))]
    return {prompt_hash(prompt) for prompt in (*prompts, *several)}


def _is_generation(scope: MutableMapping[str, Any]) -> bool:
    if scope.get("type") != "http" or scope.get("method") != "POST":
        return False
    path = str(scope.get("path", "")).removeprefix(str(scope.get("root_path") or ""))
    return (path.rstrip("/") or path) in GENERATION_PATHS


def _client_of(scope: MutableMapping[str, Any]) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


def _give_id(scope: MutableMapping[str, Any]) -> None:
    """An id by which the request can be found, and aborted, where the client gave none."""
    headers = scope.get("headers")
    if isinstance(headers, list) and not any(name == b"x-request-id" for name, _ in headers):
        headers.append((b"x-request-id", uuid.uuid4().hex.encode()))


async def _read_body(receive: Receive) -> tuple[bytes, Receive]:
    """The whole body, and a way for the server to read it again; a body that is too long is only read in part."""
    messages: list[Message] = []
    size = 0
    while size <= MOST_BODY_BYTES:
        message = await receive()
        messages.append(message)
        size += len(message.get("body", b""))
        if message.get("type") != "http.request" or not message.get("more_body"):
            break
    body = b"".join(message.get("body", b"") for message in messages)

    async def again() -> Message:
        return messages.pop(0) if messages else await receive()

    return body, again
