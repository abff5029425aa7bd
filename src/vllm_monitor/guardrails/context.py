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
from vllm_monitor.records import FAILURE_TYPES, Condition, LifecycleState
from vllm_monitor.records.vocabulary import Kind

__all__ = ["FUNCTIONS", "METRICS", "VARIABLES", "Variable", "example_context", "make_context"]


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


_FIXED = (
    Variable("target", "http://gpu1:8000", "The server's URL."),
    Variable("labels", {"team": "search"}, "The labels that its operator gave the server; `has(labels.team)` asks."),
    Variable("state", "processing_requests", "Its lifecycle state.", tuple(LifecycleState)),
    Variable("state_seconds", 60.0, "How long it has been in this state."),
    Variable(
        "condition",
        "ok",
        "What is the matter; not known while that is `unknown`.",
        tuple(condition for condition in Condition if condition is not Condition.UNKNOWN),
    ),
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
_NOTHING: Mapping[str, Any] = {
    "labels": {},
    "state_seconds": 0.0,
    "host_pressed": False,
    "restarts": 0,
    "crashes": 0,
    "failures_in_a_row": 0,
    "startup_phase": "",
    "startup_phase_seconds": 0.0,
    "startup_is_slow": False,
    "predictions": dict.fromkeys(FAILURE_TYPES, 0.0),
}
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


def make_context(snapshot: Snapshot, facts: Mapping[str, Any]) -> cel.Context:
    """The context of one target and tick.

    Args:
        snapshot: The picture; its metrics, state and condition are taken from it.
        facts: The other names, as :data:`VARIABLES` documents them; those that are left out have their example's value
            where that means nothing in particular (no labels, no predictions, no start).
    """
    variables: dict[str, Any] = {**_NOTHING, **snapshot.values, **facts}
    variables["target"] = snapshot.target
    variables["state"] = snapshot.state.value
    if snapshot.condition is not Condition.UNKNOWN:  # as with a metric: what is not known is absent
        variables["condition"] = snapshot.condition.value
        variables["condition_seconds"] = max(0.0, snapshot.timestamp - snapshot.condition_since)
    return cel.Context(variables)
