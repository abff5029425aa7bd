"""A signal that many coroutines wait for, again and again."""

from __future__ import annotations

import asyncio

__all__ = ["Beat"]


class Beat:
    """Wakes everybody who waits, each time it is struck."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def strike(self) -> None:
        """Wake all who wait now."""
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def wait(self) -> None:
        """Return at the next strike."""
        await self._event.wait()
