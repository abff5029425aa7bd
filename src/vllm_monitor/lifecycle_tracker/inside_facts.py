"""What the part inside a server told of its life, for checkpoints.

They change neither state nor condition: those are judged by all evidence together, so that two views of one server
cannot pull it to and fro. A checkpoint of what was told inside has the state that holds, and the facts beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from vllm_monitor.records import EngineNote, StateCheckpoint

__all__ = ["ENGINE_KEY", "INSIDE_KEY", "SINCE_KEY", "Told", "condition_since", "is_inside", "key_of", "told_inside"]

INSIDE_KEY = "inside"
"""Where a checkpoint of what was told inside keeps the facts."""
SINCE_KEY = "condition_since"
"""Where such a checkpoint keeps since when the condition that it repeats holds."""
ENGINE_KEY = "engine"
"""Where every checkpoint keeps the configuration and the size of the KV cache, once they were told."""
PHASES = (
    "process_started_at",
    "engine_client_at",
    "engine_initialized_at",
    "application_built_at",
    "application_ready_at",
)
"""Of a start, in order."""
KV_FACTS = ("num_gpu_blocks", "block_size", "kv_capacity_tokens", "kv_engine_tokens")
ENGINE_FACTS = ("config_fingerprint", *KV_FACTS)
FIGURES = frozenset({*PHASES, *KV_FACTS})
TEXTS = ("config_fingerprint", "api_server")
STARTUP_KINDS = ("started", "engine_initialized", "application_ready")
REJECTION_KINDS = ("rejected", "rejected_over")
MOST_FACTS = 50
MOST_FIGURE = 1e15
FINGERPRINT_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Told:
    """A fact of the inside, as a checkpoint keeps it.

    Args:
        words: The fact in one sentence.
        facts: What is kept of it under :data:`INSIDE_KEY`.
        engine: What is known of the engine from now on, under :data:`ENGINE_KEY`.
        metrics: Figures of it; seconds, tokens and counts as their names say.
    """

    words: str
    facts: Mapping[str, Any]
    engine: Mapping[str, Any]
    metrics: Mapping[str, float] = field(default_factory=dict)


def told_inside(note: EngineNote, engine: Mapping[str, Any]) -> Told | None:
    """What a note means for the life of the server; ``None`` for those that mean nothing for it.

    Args:
        note: What was told.
        engine: What is known of the engine so far.
    """
    in_words = _WORDS.get(note.kind)
    facts: dict[str, Any] = {
        name: value for name, value in list(note.facts.items())[:MOST_FACTS] if isinstance(value, str | int | float)
    }
    is_no_pause = note.kind == "lever" and facts.get("lever") not in ("pause", "resume")
    if in_words is None or is_no_pause or not 0 < note.timestamp < MOST_FIGURE:
        return None
    known, metrics = dict(engine), dict[str, float]()
    if note.kind in STARTUP_KINDS:
        facts = {
            name: value
            for name, value in facts.items()
            if (name in TEXTS and isinstance(value, str)) or (name in FIGURES and _is_figure(value))
        }
        config = note.facts.get("config")
        if isinstance(config, Mapping):
            before = known.get("config")
            changed = _differing(before, config) if isinstance(before, Mapping) else []
            if changed:
                facts["config_changed"] = changed
            known = {"config": dict(config)}
        known |= {name: facts[name] for name in ENGINE_FACTS if name in facts}
        facts["phase_seconds"] = phase_seconds(facts)
        metrics = {f"inside_{name}_seconds": seconds for name, seconds in facts["phase_seconds"].items()}
        if "kv_capacity_tokens" in known:
            metrics["inside_kv_capacity_tokens"] = float(known["kv_capacity_tokens"])
    elif note.kind in REJECTION_KINDS:
        reasons = note.facts.get("reasons")
        if not isinstance(reasons, Mapping) or not _is_figure(facts.get("requests")):
            return None
        facts["reasons"] = dict(reasons)
        metrics = {"inside_rejected_requests": float(facts["requests"])}
    words = f"inside: {in_words(facts)}"
    return Told(words, {**facts, "kind": note.kind, "at": note.timestamp, "words": words}, known, metrics)


def key_of(values: Any) -> tuple[str, ...] | None:
    """What tells one fact of the inside from another; ``None`` when there is none.

    Args:
        values: What a checkpoint keeps under :data:`INSIDE_KEY`.
    """
    if not isinstance(values, Mapping):
        return None
    return tuple(str(values.get(name)) for name in ("kind", "at", "api_server", "lever"))


def phase_seconds(facts: Mapping[str, Any]) -> dict[str, float]:
    """How long each phase took that is over, by what it ended with, and ``startup``: from the first to the last."""
    known = [(name.removesuffix("_at"), facts[name]) for name in PHASES if _is_figure(facts.get(name))]
    if any(after < before for (_, before), (_, after) in pairwise(known)):
        return {}  # the clock was set meanwhile
    took = {name: round(after - before, 3) for (_, before), (name, after) in pairwise(known)}
    if took:
        took["startup"] = round(known[-1][1] - known[0][1], 3)
    return took


def is_inside(checkpoint: StateCheckpoint) -> bool:
    """Whether a checkpoint holds what was told inside, and so no change of state or condition."""
    return isinstance(checkpoint.metadata.get(INSIDE_KEY), Mapping)


def condition_since(checkpoint: StateCheckpoint) -> float:
    """Unix seconds since when the condition of a checkpoint holds."""
    since = checkpoint.metadata.get(SINCE_KEY)
    return since if isinstance(since, float) and is_inside(checkpoint) else checkpoint.timestamp


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < MOST_FIGURE


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _started(facts: Mapping[str, Any]) -> str:
    took = facts["phase_seconds"].get("engine_client")
    words = "the engine is up" if took is None else f"the engine is up {took:.1f} s after its process began"
    fingerprint = facts.get("config_fingerprint")
    if fingerprint:
        words += f"; configuration {str(fingerprint)[:FINGERPRINT_SHOWN]}"
    changed = facts.get("config_changed")
    if changed:
        words += f", of which changed since the last time: {', '.join(changed)}"
    return words


def _initialized(facts: Mapping[str, Any]) -> str:
    if "kv_capacity_tokens" not in facts:
        return "the engine is ready"
    blocks = f"{facts.get('num_gpu_blocks', '?')} blocks of {facts.get('block_size', '?')}"
    return f"the engine is ready; its KV cache holds {facts['kv_capacity_tokens']} tokens ({blocks})"


def _application(facts: Mapping[str, Any]) -> str:
    took = facts["phase_seconds"].get("startup")
    return "the application is ready" + ("" if took is None else f" {took:.1f} s after its process began")


def _slept(facts: Mapping[str, Any]) -> str:
    if not facts.get("is_asleep", True):
        return "the engine is awake"
    level = facts.get("level")
    return "the engine sleeps" if level is None else f"the engine sleeps (level {level})"


def _lever(facts: Mapping[str, Any]) -> str:
    done = "" if facts.get("done") else ", which was not done"
    if facts["lever"] == "resume":
        return f"a lever has resumed the engine{' at the end of its time' if facts.get('by_itself') else ''}{done}"
    return f"a lever has paused the engine (mode {facts.get('mode')}, for {facts.get('for_seconds')} s){done}"


def _refused(facts: Mapping[str, Any]) -> str:
    return f"requests are refused ({', '.join(facts['reasons'])})"


def _refused_over(facts: Mapping[str, Any]) -> str:
    reasons = ", ".join(f"{reason} {count}" for reason, count in facts["reasons"].items())
    return f"no request is refused any more; {facts['requests']} were ({reasons})"


_WORDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "started": _started,
    "engine_initialized": _initialized,
    "application_ready": _application,
    "sleep": _slept,
    "lever": _lever,
    "rejected": _refused,
    "rejected_over": _refused_over,
    "end": lambda _: "the server's process ends",
}
