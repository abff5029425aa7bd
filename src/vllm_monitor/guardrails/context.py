"""What a guardrail's condition may speak of: names, meanings, and an example of each.

The context of a tick is built once per target and shared by all policies. A metric that is not known at the moment is
absent from it, and a condition that needs it is not decided (see ``condition``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cel

from vllm_monitor.picture import DERIVED, FAMILIES, Snapshot
from vllm_monitor.picture.vocabulary import Kind
from vllm_monitor.records import FAILURE_TYPES, Condition, LifecycleState

__all__ = ["FUNCTIONS", "METRICS", "VARIABLES", "LifeFigures", "Variable", "example_context", "make_context"]


@dataclass(frozen=True, slots=True)
class Variable:
    """A name that conditions know.

    Args:
        name: The name.
        example: A value of its type.
        help: Meaning and unit.
        values: All values it can have, where these are few.
    """

    name: str
    example: Any
    help: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LifeFigures:
    """Figures of the lifecycle that conditions speak of.

    Args:
        state_since: Unix seconds at which the state was entered.
        restarts: Times the server was started again.
        crashes: Times it died without being asked to.
        failures_in_a_row: Crashes since it last served for a minute.
        startup_phase: The phase of a start under way, else empty.
        startup_phase_seconds: How long that phase has taken.
        startup_is_slow: Whether that is much longer than usual.
    """

    state_since: float = 0.0
    restarts: int = 0
    crashes: int = 0
    failures_in_a_row: int = 0
    startup_phase: str = ""
    startup_phase_seconds: float = 0.0
    startup_is_slow: bool = False


_FIXED = (
    Variable("target", "http://gpu1:8000", "The server's URL."),
    Variable("labels", {"team": "search"}, "The labels that its operator gave the server; `has(labels.team)` asks."),
    Variable("state", "processing_requests", "Its lifecycle state.", tuple(LifecycleState)),
    Variable("state_seconds", 60.0, "How long it has been in this state."),
    Variable("condition", "ok", "What is the matter.", tuple(Condition)),
    Variable("condition_seconds", 60.0, "How long that has been the matter."),
    Variable("host_pressed", False, "The host's tasks wait for CPU or memory (whether or not the server suffers)."),
    Variable("restarts", 0, "Times the server was started again since it is watched."),
    Variable("crashes", 0, "Times it died without being asked to."),
    Variable("failures_in_a_row", 0, "Crashes since it last served for a minute."),
    Variable("startup_phase", "", "The phase of a start under way, empty when there is none."),
    Variable("startup_phase_seconds", 0.0, "How long that phase has taken."),
    Variable("startup_is_slow", False, "That phase takes much longer than it usually does."),
    Variable(
        "predictions",
        dict.fromkeys(FAILURE_TYPES, 0.0),
        "Failure type to the probability of the newest open prediction of it, 0 when there is none.",
    ),
)
METRICS: Mapping[str, str] = {
    **{family.name: family.help for family in FAMILIES if family.kind is not Kind.HISTOGRAM},
    **DERIVED,
}
"""Canonical metric name to its meaning; each is a real number."""
VARIABLES: Mapping[str, Variable] = {
    **{variable.name: variable for variable in _FIXED},
    **{name: Variable(name, 1.0, text) for name, text in METRICS.items()},
}
FUNCTIONS = frozenset({
    "size", "contains", "startsWith", "endsWith", "matches", "has", "double", "int", "uint", "string",
    "all", "exists", "exists_one", "filter", "map",
})  # fmt: skip
"""Functions of CEL that conditions may use, beside its operators."""


def example_context() -> cel.Context:
    """A context in which every documented name exists, with a value of its type."""
    return cel.Context({variable.name: variable.example for variable in VARIABLES.values()})


def make_context(
    snapshot: Snapshot,
    life: LifeFigures,
    *,
    labels: Mapping[str, str],
    host_pressed: bool,
    predictions: Mapping[str, float] | None = None,
) -> cel.Context:
    """The context of one target and tick.

    Args:
        snapshot: The picture.
        life: Figures of the lifecycle.
        labels: Labels of the target.
        host_pressed: Whether the host is pressed.
        predictions: Failure type to probability, of open predictions.
    """
    now = snapshot.timestamp
    variables: dict[str, Any] = dict(snapshot.values)
    variables.update(
        target=snapshot.target,
        labels=dict(labels),
        state=snapshot.state.value,
        state_seconds=max(0.0, now - life.state_since),
        condition=snapshot.condition.value,
        condition_seconds=max(0.0, now - snapshot.condition_since),
        host_pressed=host_pressed,
        restarts=life.restarts,
        crashes=life.crashes,
        failures_in_a_row=life.failures_in_a_row,
        startup_phase=life.startup_phase,
        startup_phase_seconds=life.startup_phase_seconds,
        startup_is_slow=life.startup_is_slow,
        predictions={**dict.fromkeys(FAILURE_TYPES, 0.0), **(predictions or {})},
    )
    return cel.Context(variables)
