"""What can be done to a running server from inside: each lever idempotent, with a time limit, its effect read back.

The engine client of vLLM has them; which it has is looked at, never its version. A call that an engine does not answer
ends after its own time limit and says so. Whatever holds something back lets go by itself when its time is over, also
when nobody is there any more to say so.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from vllm_monitor_engine.admission import AimdLimit, AimdSettings
from vllm_monitor_engine.middleware import GateState
from vllm_monitor_engine.step_columns import is_number

__all__ = ["LeverError", "Levers"]

CALL_SECONDS = 5.0
STATUS_SECONDS = 0.5
LARGEST_LIMIT = 10**9
MOST_SECONDS = 3600.0
LOOK_SECONDS = 0.25
HASH_LENGTH = 64
SERVED_SECONDS = 5.0
PAUSE_MODES = ("keep", "wait", "abort")


class LeverError(Exception):
    """A lever that cannot be moved: what it says is for the operator.

    Args:
        message: What is wrong, and what to do.
        status: The HTTP status that says it.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Levers:
    """The levers of one server process. For its event loop.

    Args:
        client: vLLM's engine client.
        gate: The gate before the server.
        note: Takes a fact that is to be told to the monitor.
        load: Gives what the engines last said: requests waiting, and how full the KV cache is.
        wall: Unix seconds.
        monotonic: Seconds of a clock that never jumps.
    """

    def __init__(
        self,
        client: Any,
        gate: GateState,
        *,
        note: Callable[..., None] = lambda *_, **__: None,
        load: Callable[[], tuple[float, float]] = lambda: (0.0, 0.0),
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._gate = gate
        self._note = note
        self._load = load
        self._wall = wall
        self._monotonic = monotonic
        self._ends: dict[str, asyncio.Task[None]] = {}
        self._ends_at: dict[str, float] = {}
        self._adaptive: asyncio.Task[None] | None = None
        # One pause or resume at a time, with all that belongs to it: else a pause could land that has no end.
        self._pausing = asyncio.Lock()

    # -- looking ---------------------------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """Where everything stands; ``is_paused`` is ``None`` when the engine does not say so at once."""
        waiting, kv_ratio = self._load()
        is_paused: bool | None = None
        with contextlib.suppress(LeverError):
            is_paused = await self._is_paused(STATUS_SECONDS)
        now = self._monotonic()
        return {
            "levers": sorted(self._offered()),
            "in_flight": len(self._states()),
            "waiting": waiting,
            "kv_cache_usage_ratio": kv_ratio,
            "is_paused": is_paused,
            "admission_limit": self._gate.limit,
            "client_limit": self._gate.client_limit,
            "is_adaptive": self._adaptive is not None,
            "refused": dict(self._gate.refused),
            "refused_prompts": len(self._gate.all_refused()),
            "ends_in_seconds": {name: round(max(0.0, at - now), 3) for name, at in self._ends_at.items()},
        }

    def requests(self, most: int | None = 1_000) -> list[dict[str, Any]]:
        """Requests in flight, oldest first: id, age in seconds, tokens; never their text."""
        now = self._wall()
        found: list[dict[str, Any]] = []
        for name, state in self._states().items():
            stats = getattr(state, "stats", None)
            arrived = getattr(stats, "arrival_time", None)
            found.append(
                {
                    "id": str(getattr(state, "external_req_id", None) or name),
                    "internal_id": str(name),
                    "age_seconds": round(max(0.0, now - arrived), 3) if isinstance(arrived, float) else None,
                    "prompt_tokens": getattr(state, "prompt_len", None),
                    "output_tokens": getattr(stats, "num_generation_tokens", None),
                    "is_prefilling": getattr(state, "is_prefilling", None),
                }
            )
        found.sort(key=lambda one: -(one["age_seconds"] or 0.0))
        return found[:most]

    # -- doing -----------------------------------------------------------------------------------------------------

    async def pause(self, mode: str = "keep", for_seconds: float = 60.0) -> dict[str, Any]:
        """Let the engines take no further steps, for a while.

        Args:
            mode: ``keep`` freezes what runs, ``wait`` lets it end first, ``abort`` ends it.
            for_seconds: When it is resumed by itself.
        """
        self._require("pause")
        if mode not in PAUSE_MODES:
            raise LeverError(f"a pause is one of {', '.join(PAUSE_MODES)}, not {mode!r}")
        seconds = _seconds(for_seconds)
        async with self._pausing:
            # First the end, so that a pause that is answered too late has one.
            self._end_after("pause", seconds, self._end_pause)
            try:
                if not await self._is_paused():
                    await self._call(self._client.pause_generation(mode=mode, clear_cache=False), "pause")
                paused = await self._is_paused()
            except LeverError:
                self._told("pause", mode=mode, for_seconds=seconds, done=False)
                raise
            self._told("pause", mode=mode, for_seconds=seconds, done=paused)
        return {"done": paused, "is_paused": paused, "ends_in_seconds": seconds}

    async def resume(self) -> dict[str, Any]:
        """Let the engines go on; does no harm when they do."""
        self._require("resume")
        async with self._pausing:
            await self._resume()
            paused = await self._is_paused()
            if not paused:  # else its end still has to come
                self._forget_end("pause")
            self._told("resume", done=not paused)
        return {"done": not paused, "is_paused": paused}

    async def abort(
        self, ids: list[str] | None = None, older_than_seconds: float | None = None, most: int = 1_000
    ) -> dict[str, Any]:
        """End requests, by their ids or by their age; their clients get what there is, as if it were all.

        Args:
            ids: Ids as :meth:`requests` gives them, or as the client was told.
            older_than_seconds: Or all that are older than this.
            most: Not more than this many, the oldest first.
        """
        self._require("abort")
        if (ids is None) == (older_than_seconds is None):
            raise LeverError("say either ids or older_than_seconds")
        if ids is not None and not (isinstance(ids, list) and ids and all(isinstance(one, str) and one for one in ids)):
            raise LeverError("ids is a list of texts, at least one")
        if older_than_seconds is not None and not (is_number(older_than_seconds) and older_than_seconds >= 0):
            raise LeverError("older_than_seconds is a number from 0")
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise LeverError("most is a whole number from 1")
        names = {
            one["internal_id"]: _names_of(one)
            for one in self.requests(most=None)
            if self._is_old(one, older_than_seconds)
        }
        wanted = set(ids or ())
        chosen = [name for name, known in names.items() if ids is None or wanted & known][:most]
        if chosen:
            await self._call(_abort(self._client, chosen), "abort")
        left = self._states()
        aborted = [name for name in chosen if name not in left]
        self._told("abort", requests=len(aborted), done=len(aborted) == len(chosen))
        answer: dict[str, Any] = {"done": len(aborted) == len(chosen), "aborted": aborted, "asked": len(chosen)}
        if ids is not None:
            answer["not_in_flight"] = sorted(wanted.difference(*names.values()))
        return answer

    @staticmethod
    def _is_old(request: dict[str, Any], seconds: float | None) -> bool:
        return seconds is None or (request["age_seconds"] or 0.0) > seconds

    async def reset_prefix_cache(self) -> dict[str, Any]:
        """Forget all cached prefixes; refused by the engine while a block is held."""
        self._require("reset_prefix_cache")
        done = bool(await self._call(self._client.reset_prefix_cache(), "reset of the prefix cache"))
        self._told("reset_prefix_cache", done=done)
        return {"done": done} if done else {"done": False, "reason": "a block of it is held: requests are in flight"}

    async def set_admission_limit(
        self, limit: int | None, for_seconds: float = 600.0, *, client_limit: int | None = None, adaptive: bool = False
    ) -> dict[str, Any]:
        """Take no more than so many generation requests at once, for a while.

        Args:
            limit: How many; ``None`` for as many as the operator chose before the start. Where it is to be adaptive,
                where it begins.
            for_seconds: When this ends by itself.
            client_limit: How many of one client address, likewise.
            adaptive: Whether it is moved by what is measured, see :class:`~vllm_monitor_engine.admission.AimdLimit`.
        """
        before = self._gate.limit
        if not isinstance(adaptive, bool):
            raise LeverError("adaptive is true or false")
        if adaptive and limit is None:
            limit = max(1, self._gate.in_flight, self._places())
        for value in (limit, client_limit):
            is_limit = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_LIMIT
            if value is not None and not is_limit:
                raise LeverError(f"a limit is a whole number from 0 to {LARGEST_LIMIT}, or null")
        seconds = _seconds(for_seconds)
        self._stop_adapting()
        self._gate.reset_limits()
        if limit is not None:
            self._gate.limit = limit
        if client_limit is not None:
            self._gate.client_limit = client_limit
        if limit is None and client_limit is None:
            self._forget_end("admission_limit")
        else:
            self._end_after("admission_limit", seconds, self._lift)
        if adaptive and limit is not None:
            self._adaptive = asyncio.get_running_loop().create_task(self._adapt(limit))
        self._told_limit(adaptive=adaptive)
        return {
            "done": True,
            "before": before,
            "admission_limit": self._gate.limit,
            "client_limit": self._gate.client_limit,
            "is_adaptive": adaptive,
            "ends_in_seconds": seconds if "admission_limit" in self._ends else None,
        }

    def refuse_prompt(self, digest: str, for_seconds: float = 600.0) -> dict[str, Any]:
        """Refuse a prompt that does harm, for a while.

        Args:
            digest: Its hash, see :func:`~vllm_monitor_engine.middleware.prompt_hash`.
            for_seconds: How long.
        """
        if not isinstance(digest, str) or len(digest) != HASH_LENGTH or set(digest) - set("0123456789abcdef"):
            raise LeverError("prompt_hash is the SHA-256 of a prompt in hexadecimal digits")
        now = time.monotonic()
        self._gate.refuse_prompt(digest, now + _seconds(for_seconds))
        self._gate.refuses_prompts(now)  # forgets those whose time is over
        self._told("refuse_prompt", prompt_hash=digest, done=True)
        return {"done": True, "refused_prompts": len(self._gate.all_refused())}

    # -- by itself -------------------------------------------------------------------------------------------------

    async def _adapt(self, start: int) -> None:
        aimd = AimdLimit(AimdSettings(), start)
        ends: deque[tuple[float, int, int]] = deque()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                self._gate.limit = self._next_limit(aimd, ends)
            except Exception:  # the limit stays as it is until the next look
                self._gate.faults += 1

    def _next_limit(self, aimd: AimdLimit, looks: deque[tuple[float, int, int]]) -> int:
        now, refused = self._monotonic(), self._gate.refused["limit"]
        refused_lately = refused - looks[-1][2] if looks else 0
        looks.append((now, self._gate.ended, refused))
        while now - looks[0][0] > SERVED_SECONDS:
            looks.popleft()
        seconds, served = now - looks[0][0], self._gate.ended - looks[0][1]
        waiting, kv_ratio = self._load()
        return aimd.look(
            now,
            in_flight=self._gate.in_flight,
            waiting=max(waiting, self._prefilling()),
            served_per_second=served / seconds if seconds > 0 else 0.0,
            kv_ratio=kv_ratio,
            refused=refused_lately,
        )

    def _places(self) -> int:
        """How many requests an engine can run at once; 0 where that is not known."""
        scheduler = getattr(getattr(self._client, "vllm_config", None), "scheduler_config", None)
        places = getattr(scheduler, "max_num_seqs", 0)
        return places if isinstance(places, int) else 0

    def _prefilling(self) -> int:
        """Requests that have not got their first token: those that the engines do not know yet are among them."""
        return sum(1 for state in self._states().values() if getattr(state, "is_prefilling", False))

    async def _lift(self) -> None:
        self._stop_adapting()
        self._gate.reset_limits()
        self._told_limit(adaptive=False)

    def _stop_adapting(self) -> None:
        if self._adaptive is not None:
            self._adaptive.cancel()
            self._adaptive = None

    async def _resume(self) -> None:
        await self._call(self._client.resume_generation(), "resume")

    async def _end_pause(self) -> None:
        async with self._pausing:
            await self._resume()
            paused = await self._is_paused()
            self._told("resume", by_itself=True, done=not paused)
        if paused:
            raise LeverError("it is still paused")  # the end comes again

    def _end_after(self, name: str, seconds: float, end: Callable[[], Awaitable[None]]) -> None:
        self._forget_end(name)

        async def wait() -> None:
            await asyncio.sleep(seconds)
            while True:  # whoever holds something back must not stay away for ever
                with contextlib.suppress(Exception):
                    await end()
                    break
                await asyncio.sleep(CALL_SECONDS)
            self._ends.pop(name, None)
            self._ends_at.pop(name, None)

        self._ends_at[name] = self._monotonic() + seconds
        self._ends[name] = asyncio.get_running_loop().create_task(wait())

    def _forget_end(self, name: str) -> None:
        task = self._ends.pop(name, None)
        self._ends_at.pop(name, None)
        if task is not None:
            task.cancel()

    # -- the engine client -----------------------------------------------------------------------------------------

    def _states(self) -> dict[str, Any]:
        states = getattr(getattr(self._client, "output_processor", None), "request_states", None)
        return dict(states) if isinstance(states, dict) else {}

    def _offered(self) -> set[str]:
        needed = {
            "pause": "pause_generation",
            "resume": "resume_generation",
            "abort": "abort",
            "reset_prefix_cache": "reset_prefix_cache",
        }
        return {
            "admission_limit",
            "refuse_prompt",
            *(name for name, method in needed.items() if hasattr(self._client, method)),
        }

    def _require(self, lever: str) -> None:
        if lever not in self._offered():
            raise LeverError(f"this version of vLLM has no {lever}", 501)

    async def _is_paused(self, within_seconds: float | None = None) -> bool:
        if not hasattr(self._client, "is_paused"):
            return False
        return bool(await self._call(self._client.is_paused(), "question whether it is paused", within_seconds))

    @staticmethod
    async def _call(awaitable: Awaitable[Any], what: str, within_seconds: float | None = None) -> Any:
        within_seconds = CALL_SECONDS if within_seconds is None else within_seconds
        try:
            return await asyncio.wait_for(awaitable, within_seconds)
        except TimeoutError:  # two classes before Python 3.11
            raise LeverError(
                f"the engine did not answer the {what} within {within_seconds:g} s; it may still do it late: look at "
                "the status before anything else",
                504,
            ) from None
        except Exception as error:
            raise LeverError(f"the {what} failed: {error}", 502) from error

    def _told_limit(self, *, adaptive: bool) -> None:
        limit = self._gate.limit
        self._told("admission_limit", limit=-1 if limit is None else limit, adaptive=adaptive, done=True)

    def _told(self, lever: str, **facts: Any) -> None:
        self._note("lever", lever=lever, **facts)


def _names_of(request: dict[str, Any]) -> set[str]:
    """By what a request may be called.

    Of a completion vLLM makes one request for each prompt, and tells the client what stands before their numbers.
    """
    whole, _, number = request["id"].rpartition("-")
    told = {whole} if whole.startswith("cmpl-") and number.isdecimal() else set()
    return {request["id"], request["internal_id"], *told}


async def _abort(client: Any, names: list[str]) -> None:
    try:
        await client.abort(names, internal=True)
    except TypeError:  # versions in which all ids are of one kind
        await client.abort(names)


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= MOST_SECONDS:
        raise LeverError(f"for_seconds is a number above 0 and up to {MOST_SECONDS:g}, not {value!r}")
    return float(value)
