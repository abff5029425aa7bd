"""The routes of the levers, as a small ASGI application: JSON in, JSON out, standard library only.

It is mounted below ``/v1``, so that the server's ``--api-key`` guards it like everything there.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from vllm_monitor_engine.levers import LeverError, Levers

__all__ = ["MOUNT_PATH", "Routes"]

MOUNT_PATH = "/v1/vllm-monitor"
MOST_BODY_BYTES = 1 << 20

Handler = Callable[[Levers, dict[str, Any]], Awaitable[dict[str, Any]]]


async def _status(levers: Levers, _: dict[str, Any]) -> dict[str, Any]:
    return await levers.status()


async def _requests(levers: Levers, _: dict[str, Any]) -> dict[str, Any]:
    return {"requests": levers.requests()}


async def _pause(levers: Levers, body: dict[str, Any]) -> dict[str, Any]:
    return await levers.pause(**body)


async def _resume(levers: Levers, body: dict[str, Any]) -> dict[str, Any]:
    return await levers.resume(**body)


async def _abort(levers: Levers, body: dict[str, Any]) -> dict[str, Any]:
    return await levers.abort(**body)


async def _reset_prefix_cache(levers: Levers, body: dict[str, Any]) -> dict[str, Any]:
    return await levers.reset_prefix_cache(**body)


async def _admission_limit(levers: Levers, body: dict[str, Any]) -> dict[str, Any]:
    if not body.keys() & {"limit", "client_limit", "adaptive"}:
        raise LeverError("say limit: a whole number, or null to take it away")
    return await levers.set_admission_limit(body.pop("limit", None), **body)


async def _refuse_prompt(levers: Levers, body: dict[str, Any]) -> dict[str, Any]:
    return levers.refuse_prompt(body.pop("prompt_hash", ""), **body)


ARGUMENTS: dict[str, tuple[str, ...]] = {
    "/pause": ("mode", "for_seconds"),
    "/abort": ("ids", "older_than_seconds", "most"),
    "/admission-limit": ("limit", "client_limit", "adaptive", "for_seconds"),
    "/refuse-prompt": ("prompt_hash", "for_seconds"),
}
ROUTES: dict[tuple[str, str], Handler] = {
    ("GET", "/status"): _status,
    ("GET", "/requests"): _requests,
    ("POST", "/pause"): _pause,
    ("POST", "/resume"): _resume,
    ("POST", "/abort"): _abort,
    ("POST", "/reset-prefix-cache"): _reset_prefix_cache,
    ("POST", "/admission-limit"): _admission_limit,
    ("POST", "/refuse-prompt"): _refuse_prompt,
}


class Routes:
    """The application. Without an engine every route answers 503.

    Attributes:
        levers: What it moves; set once the engine is there.
    """

    def __init__(self) -> None:
        self.levers: Levers | None = None

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Serve one request."""
        if scope.get("type") != "http":
            return
        status, answer = await self._answer(scope, receive)
        content = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _answer(
        self, scope: MutableMapping[str, Any], receive: Callable[[], Awaitable[MutableMapping[str, Any]]]
    ) -> tuple[int, dict[str, Any]]:
        path = str(scope.get("path", ""))
        path = path[path.find(MOUNT_PATH) + len(MOUNT_PATH) :] if MOUNT_PATH in path else path
        handler = ROUTES.get((str(scope.get("method")), path.rstrip("/")))
        if handler is None:
            known = ", ".join(f"{method} {MOUNT_PATH}{route}" for method, route in ROUTES)
            return 404, {"error": f"there is no such route; there are {known}"}
        if self.levers is None:
            return 503, {"error": "there is no engine behind these levers (yet)"}
        try:
            body = await _body(receive)
            strange = sorted(body.keys() - set(ARGUMENTS.get(path.rstrip("/"), ())))
            if strange:
                known = ", ".join(ARGUMENTS.get(path.rstrip("/"), ())) or "no arguments"
                raise LeverError(f"there is no {strange[0][:80]!r} here; there are {known}")
            return 200, await handler(self.levers, body)
        except LeverError as error:
            return error.status, {"error": str(error)}
        except Exception as error:  # a fault of ours is an answer, and not the server's
            return 500, {"error": f"a fault of vllm-monitor: {error!r}"}


async def _body(receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> dict[str, Any]:
    data = b""
    while True:
        message = await receive()
        data += message.get("body", b"")
        if len(data) > MOST_BODY_BYTES:
            raise LeverError("the body is too long", 413)
        if message.get("type") != "http.request" or not message.get("more_body"):
            break
    if not data.strip():
        return {}
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise LeverError(f"the body is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise LeverError("the body is no JSON object")
    return body
