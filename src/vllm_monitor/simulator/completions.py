"""``POST /v1/completions``, streamed or whole."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import count
from typing import Any

from aiohttp import web

from vllm_monitor.errors import ConfigurationError, TargetUnreachableError
from vllm_monitor.simulator.beat import Beat
from vllm_monitor.simulator.phases import ENGINE_DEAD
from vllm_monitor.simulator.request import Request
from vllm_monitor.simulator.simulator import Simulator

__all__ = ["CompletionRoute"]

_CHARACTERS_PER_TOKEN = 4
_WORDS = (" the", " server", " answers", " with", " words", " of", " no", " meaning")


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the body of a completion request asks for."""

    prompt_tokens: int
    max_tokens: int
    stream: bool


class CompletionRoute:
    """Sends requests of HTTP clients through the simulated engine, beside the background load.

    Args:
        simulator: The simulated server.
        beat: Struck after each advance of simulated time.
    """

    def __init__(self, simulator: Simulator, beat: Beat) -> None:
        self._simulator = simulator
        self._beat = beat
        self._numbers = count(1)

    async def handle(self, http_request: web.Request) -> web.StreamResponse:
        """Answer one request; the engine forgets it when the client hangs up."""
        simulator = self._simulator
        try:
            wish = self._read(await _json_object(http_request))
            request = simulator.submit(wish.prompt_tokens, wish.max_tokens)
        except ConfigurationError as error:
            return self._refuse(400, "BadRequestError", str(error))
        except TargetUnreachableError:
            return self._refuse(500, "InternalServerError", ENGINE_DEAD)
        identity = f"cmpl-{next(self._numbers)}"
        try:
            if wish.stream:
                return await self._stream(http_request, request, identity)
            return await self._whole(request, identity)
        finally:
            simulator.abandon(request)

    def _read(self, body: dict[str, Any]) -> _Wish:
        model = self._simulator.settings.model
        if body.get("model", model) != model:
            raise ConfigurationError(f"The model `{body['model']}` does not exist.", hint=f"It is {model!r}.")
        prompt = body.get("prompt", "")
        max_tokens = body.get("max_tokens", 16)
        if isinstance(prompt, str):
            tokens = len(prompt) // _CHARACTERS_PER_TOKEN + 1
        elif isinstance(prompt, list) and all(type(token) is int for token in prompt):
            tokens = len(prompt)
        else:
            raise ConfigurationError("the prompt is no text", hint="Give text or a list of token numbers.")
        if type(max_tokens) is not int:
            raise ConfigurationError("max_tokens is no whole number", hint="Give a number from 1 up.")
        return _Wish(tokens, max_tokens, bool(body.get("stream", False)))

    def _refuse(self, status: int, kind: str, message: str) -> web.Response:
        life = self._simulator.life
        if life is not None:
            life.http.completion(f"{status // 100}xx", 0.005, 0, 0)
        return web.json_response({"error": _error(status, kind, message)}, status=status)

    async def _whole(self, request: Request, identity: str) -> web.Response:
        while not request.is_over:
            await self._beat.wait()
        if request.failure:
            error = _error(500, "InternalServerError", request.failure)
            return web.json_response({"error": error}, status=500)
        answer = self._chunk(identity, _text(0, request.generated), request.finish_reason)
        answer["usage"] = {
            "prompt_tokens": request.prompt_tokens,
            "total_tokens": request.prompt_tokens + request.generated,
            "completion_tokens": request.generated,
        }
        return web.json_response(answer)

    async def _stream(self, http_request: web.Request, request: Request, identity: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(http_request)
        sent = 0
        while True:
            is_over = request.is_over
            if request.failure:
                error = {"error": _error(500, "InternalServerError", request.failure)}
                await response.write(_event(error))
                break
            for number in range(sent, request.generated):
                is_last = is_over and number == request.generated - 1
                reason = request.finish_reason if is_last else None
                await response.write(_event(self._chunk(identity, _text(number, number + 1), reason)))
            if is_over and request.generated == 0:
                await response.write(_event(self._chunk(identity, "", request.finish_reason)))
            sent = request.generated
            if is_over:
                break
            await self._beat.wait()
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def _chunk(self, identity: str, text: str, finish_reason: str | None) -> dict[str, Any]:
        return {
            "id": identity,
            "object": "text_completion",
            "created": int(self._simulator.unix_time),
            "model": self._simulator.settings.model,
            "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}],
        }


async def _json_object(http_request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await http_request.read())
    except ValueError as error:
        raise ConfigurationError("the body is no JSON", hint="Send a JSON object.") from error
    if not isinstance(body, dict):
        raise ConfigurationError("the body is no JSON object", hint="Send a JSON object.")
    return body


def _error(status: int, kind: str, message: str) -> dict[str, Any]:
    return {"message": message, "type": kind, "param": None, "code": status}


def _event(payload: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(payload)}\n\n".encode()


def _text(begin: int, end: int) -> str:
    return "".join(_WORDS[number % len(_WORDS)] for number in range(begin, end))
