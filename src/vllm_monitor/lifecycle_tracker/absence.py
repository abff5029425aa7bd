"""What happened to a server while nobody watched it: told from two checkpoints of identity, before and after."""

from __future__ import annotations

from typing import Any

from vllm_monitor.picture import ServerIdentity

__all__ = ["IDENTITY_KEY", "changes_between", "identity_from", "identity_values"]

IDENTITY_KEY = "server"
"""Where a checkpoint keeps which life of the server it belongs to."""


def identity_values(identity: ServerIdentity) -> dict[str, Any]:
    """An identity as values of a checkpoint's metadata."""
    return {
        "start_time": identity.start_time,
        "generation_tokens_total": identity.generation_tokens_total,
        "version": identity.version,
        "models": list(identity.models),
    }


def identity_from(values: object) -> ServerIdentity:
    """What a checkpoint's metadata says; what it does not say, or says in another form, is unknown."""
    if not isinstance(values, dict):
        return ServerIdentity()
    models, version = values.get("models"), values.get("version")
    return ServerIdentity(
        start_time=_number(values.get("start_time")),
        generation_tokens_total=_number(values.get("generation_tokens_total")),
        version=version if isinstance(version, str) else None,
        models=tuple(str(model) for model in models) if isinstance(models, list) else (),
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def changes_between(before: ServerIdentity, after: ServerIdentity) -> tuple[bool | None, list[str]]:
    """Whether the server was restarted between two looks, and what else changed, in words.

    Returns:
        ``None`` for the first when that cannot be told.
    """
    said: list[str] = []
    restarted: bool | None = None
    if before.start_time is not None and after.start_time is not None:
        restarted = before.start_time != after.start_time
        said.append("it was restarted: its process start time changed" if restarted else "the same process ran on")
    elif (
        before.generation_tokens_total is not None
        and after.generation_tokens_total is not None
        and after.generation_tokens_total < before.generation_tokens_total
    ):
        restarted = True
        said.append("it was restarted: its counters began anew")
    if before.version and after.version and before.version != after.version:
        said.append(f"its version {before.version} became {after.version}")
    if before.models and after.models and before.models != after.models:
        said.append(f"its model {', '.join(before.models)} became {', '.join(after.models)}")
    return restarted, said
