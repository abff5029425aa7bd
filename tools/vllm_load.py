"""Ordinary clients for a real vLLM server: open-loop Poisson arrivals of streaming completions.

``python tools/vllm_load.py URL MODEL RATE SHORTEST LONGEST LIMIT SEED`` sends them, without streaming, until it
is killed, and prints the unix time at which the first request failed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp

from vllm_monitor.clock import SystemClock, make_random

REQUEST_LIMIT_SECONDS = 120.0
WORDS = ("server", "queue", "token", "batch", "quick", "brown", "lazy", "number", "7", "please")


@dataclass(frozen=True, slots=True)
class LoadCounts:
    """What became of the requests so far.

    Args:
        started: Requests sent.
        ok: Requests that streamed to their regular end.
        failed: Requests refused, broken off, answered with an error, or timed out.
        abandoned: Requests still in flight when the load was stopped.
    """

    started: int = 0
    ok: int = 0
    failed: int = 0
    abandoned: int = 0


class LoadGenerator:
    """Sends requests from a thread of its own between :meth:`start` and :meth:`stop`.

    Open loop: arrivals do not wait for answers, as real users do not. ``counts`` may be read from any thread.

    Args:
        url: The server.
        model: Name of the model it serves.
        requests_per_second: Mean rate of arrivals.
        max_tokens: Smallest and largest length of an answer.
        limit_seconds: A client gives up after so long; that request has failed.
        stream: Have tokens sent as they come, which costs the client much more.
        seed: Same seed, same arrivals, prompts and lengths.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        requests_per_second: float = 2.0,
        max_tokens: tuple[int, int] = (16, 64),
        limit_seconds: float = REQUEST_LIMIT_SECONDS,
        stream: bool = True,
        seed: int = 1,
    ) -> None:
        self._url = f"{url}/v1/completions"
        self._model = model
        self._rate = requests_per_second
        self._max_tokens = max_tokens
        self._limit_seconds = limit_seconds
        self._stream = stream
        self.first_failed_at: float | None = None
        """Unix seconds at which the first request had failed."""
        self._random = make_random(seed)
        self._started = self._ok = self._failed = self._abandoned = 0
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="vllm-load", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def counts(self) -> LoadCounts:
        """What became of the requests so far."""
        return LoadCounts(self._started, self._ok, self._failed, self._abandoned)

    def start(self) -> None:
        """Begin; once per generator."""
        self._thread.start()

    def stop(self) -> LoadCounts:
        """Break off what is in flight, end the thread and return the final counts."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join()
        return self.counts

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._arrive())

    async def _arrive(self) -> None:
        limits = aiohttp.ClientTimeout(total=self._limit_seconds)
        async with (
            aiohttp.ClientSession(timeout=limits, connector=aiohttp.TCPConnector(limit=0)) as session,
            asyncio.TaskGroup() as clients,
        ):
            in_flight: set[asyncio.Task[None]] = set()
            due_at = self._loop.time()
            while True:
                # On time on the whole, also where the host wakes us late: arrivals that are due come at once.
                due_at += self._random.expovariate(self._rate)
                if await self._ended_within(due_at - self._loop.time()):
                    break
                client = clients.create_task(self._request(session))
                in_flight.add(client)
                client.add_done_callback(in_flight.discard)
            for client in in_flight:
                client.cancel()

    async def _ended_within(self, seconds: float) -> bool:
        if seconds <= 0:
            await asyncio.sleep(0)  # let those that are due begin
            return self._ended.is_set()
        try:
            await asyncio.wait_for(self._ended.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def _request(self, session: aiohttp.ClientSession) -> None:
        body = {
            "model": self._model,
            "prompt": " ".join(self._random.choices(WORDS, k=self._random.randint(5, 40))),
            "max_tokens": self._random.randint(*self._max_tokens),
            "ignore_eos": True,
            "stream": self._stream,
        }
        self._started += 1
        try:
            async with session.post(self._url, json=body) as answer:
                if self._stream:
                    whole = answer.status == 200 and await _streams_to_its_end(answer)
                else:
                    choices = (await answer.json()).get("choices", ()) if answer.status == 200 else ()
                    whole = any(choice["finish_reason"] in ("length", "stop") for choice in choices)
        except asyncio.CancelledError:
            self._abandoned += 1
            raise
        except (aiohttp.ClientError, TimeoutError, OSError):
            whole = False
        if whole:
            self._ok += 1
        else:
            self._failed += 1
            if self.first_failed_at is None:
                self.first_failed_at = SystemClock().now()


async def _streams_to_its_end(answer: aiohttp.ClientResponse) -> bool:
    """Whether a stream of status 200 ends regularly: errors and aborts arrive inside it."""
    reason = None
    async for line in answer.content:
        text = line.decode().removeprefix("data: ").strip()
        if not text:
            continue
        if text == "[DONE]":
            return reason in ("length", "stop")
        event = json.loads(text)
        if "error" in event:
            return False
        for choice in event["choices"]:
            reason = choice["finish_reason"] or reason
    return False


def main() -> None:
    """Send requests until killed."""
    url, model, *numbers = sys.argv[1:]
    rate, shortest, longest, limit, seed = (float(number) for number in numbers)
    lengths = (int(shortest), int(longest))
    load = LoadGenerator(
        url, model, requests_per_second=rate, max_tokens=lengths, limit_seconds=limit, stream=False, seed=int(seed)
    )
    with load:
        told = False
        while True:
            time.sleep(0.1)
            if load.first_failed_at is not None and not told:
                told = True
                print(load.first_failed_at, flush=True)


if __name__ == "__main__":
    main()
