"""Small states of the simulated server that its front and its tests look at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["ENGINE_DEAD", "SHUTTING_DOWN", "Lever", "ServerPhase"]

ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
SHUTTING_DOWN = "The server is shutting down."


class ServerPhase(StrEnum):
    """``serving``; ``failing``: the engine is dead and the port not yet closed; ``down``: the port is closed."""

    SERVING = "serving"
    FAILING = "failing"
    DOWN = "down"


@dataclass(slots=True)
class Lever:
    """A control call on its way; a frozen engine applies it only when it thaws.

    Args:
        applied: It has taken effect.
    """

    applied: bool = False
