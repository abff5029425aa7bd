"""Forms of blocking verbs for asyncio."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

__all__ = ["in_thread"]

Owner = TypeVar("Owner")
Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


def in_thread(
    verb: Callable[Concatenate[Owner, Arguments], Answer],
) -> Callable[Concatenate[Owner, Arguments], Coroutine[Any, Any, Answer]]:
    """A method that awaits another one in a thread, so that it never blocks the loop."""

    @functools.wraps(verb)
    async def form(self: Owner, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        return await asyncio.to_thread(verb, self, *args, **kwargs)

    form.__name__ = f"{verb.__name__}_async"
    form.__qualname__ = f"{verb.__qualname__}_async"
    form.__doc__ = f"As :meth:`{verb.__name__}`, without blocking the loop."
    return form
