"""What clients ask of a real server, and what they are told."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Any

import pytest

from vllm_server import VllmServer

__all__ = ["Answers", "complete", "completion", "crowd", "lever", "post", "refused", "stream"]


class Answers:
    """What became of many requests. Appended to by several threads."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.refused = 0

    @property
    def served(self) -> int:
        """Requests that got their whole answer."""
        return len(self.tokens)


def completion(server: VllmServer, number: int, tokens: int = 16) -> dict[str, Any]:
    """The body of a request for a stream of so many tokens."""
    return {
        "model": server.model,
        "prompt": f"{number} " * 8,
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def stream(server: VllmServer, body: dict[str, Any], request_id: str | None = None) -> Iterator[dict[str, Any]]:
    """What a server sends, piece by piece."""
    request = post(f"{server.url}/v1/completions", body)
    if request_id is not None:
        request.add_header("X-Request-Id", request_id)
    answer: HTTPResponse
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  # our own http:// URL
        for line in answer:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])


def complete(server: VllmServer, number: int, tokens: int = 16) -> tuple[float, int, str]:
    """Stream one completion: seconds to its first token, its tokens, and the id that the client is told."""
    first, used, name, began = None, 0, "", time.perf_counter()
    for chunk in stream(server, completion(server, number, tokens)):
        name = chunk["id"]
        if chunk["choices"] and first is None:
            first = time.perf_counter() - began
        if chunk.get("usage"):
            used = chunk["usage"]["completion_tokens"]
    assert first is not None
    return first, used, name


def refused(server: VllmServer, number: int = 1) -> None:
    """A request that the gate refuses, as it should."""
    with pytest.raises(urllib.error.HTTPError) as answer:
        complete(server, number)
    with answer.value as error:
        assert (error.code, error.headers["Retry-After"]) == (503, "1")


def crowd(server: VllmServer, clients: int, tokens: int = 16) -> Answers:
    """So many requests at once; some of them may be refused, with a status or within the stream."""
    answers = Answers()

    def ask(number: int) -> None:
        with contextlib.suppress(OSError, AssertionError, KeyError):
            answers.tokens.append(complete(server, number, tokens)[1])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers.refused = clients - answers.served
    return answers


def post(url: str, body: Any) -> urllib.request.Request:
    """A request with a JSON body, or a GET without one."""
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310  # our own http:// URL


def lever(server: VllmServer, path: str, body: Any = None) -> dict[str, Any]:
    """What a route of the levers answers."""
    with urllib.request.urlopen(post(f"{server.url}/v1/vllm-monitor/{path}", body), timeout=30) as answer:  # noqa: S310
        found: dict[str, Any] = json.load(answer)
    return found
