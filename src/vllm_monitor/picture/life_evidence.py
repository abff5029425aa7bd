"""What a tick shows of where a server stands in its life: facts for the lifecycle tracker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vllm_monitor.picture.startup import StartupPhase
from vllm_monitor.records import Condition

__all__ = ["LifeEvidence", "ServerIdentity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerIdentity:
    """What tells one life of a server from another. Fields that are not known are ``None`` or empty.

    Args:
        start_time: Unix seconds at which the API server process started, as its page says.
        generation_tokens_total: Tokens generated since then: a counter that fell was reset.
        version: Version of vLLM.
        models: Names of the served models.
    """

    start_time: float | None = None
    generation_tokens_total: float | None = None
    version: str | None = None
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LifeEvidence:
    """Facts of one tick.

    Args:
        condition: What is the matter.
        reason: The judgement in one sentence.
        startup: Phases of the newest start and when each began, in order.
        roles: Roles of the living processes of a local server (``api``, ``engine``, ``worker``); empty when none
            is left, ``None`` when its processes cannot be seen.
        port_closed: The newest probes found nobody listening.
        exit_code: Exit code of the server, where it is known.
        first_fatal: The first line of the log that told of a death.
        start_failed: The log says that the engine could not be started.
        identity: Which life of the server this is.
    """

    condition: Condition
    reason: str = ""
    startup: Mapping[StartupPhase, float] = field(default_factory=dict)
    roles: frozenset[str] | None = None
    port_closed: bool = False
    exit_code: int | None = None
    first_fatal: str = ""
    start_failed: bool = False
    identity: ServerIdentity = field(default_factory=ServerIdentity)
