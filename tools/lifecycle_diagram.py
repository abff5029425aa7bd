"""Prints the transition table of the lifecycle as docs/lifecycle.md shows it: ``python tools/lifecycle_diagram.py``."""

from __future__ import annotations

from vllm_monitor.lifecycle_tracker.transitions import FAILED_STATES, RUNNING_STATES, STARTUP_STATES, TRANSITIONS
from vllm_monitor.records import LifecycleState, StateTransition

S = LifecycleState
GROUPS = {
    "Startup": STARTUP_STATES,
    "Running": RUNNING_STATES,
    "Changing": (S.PAUSED, S.RECONFIGURING, S.SCALING),
    "Failed": FAILED_STATES,
    "Ending": (S.SHUTTING_DOWN, S.CLEANUP),
}


def group_of(state: LifecycleState) -> str:
    """The box of a state in the picture; a state that has none stands for itself."""
    return next((name for name, states in GROUPS.items() if state in states), state.name)


def diagram() -> str:
    """A Mermaid state diagram: the states in boxes, an arrow for each kind of step between two of those."""
    lines = ["stateDiagram-v2", "    direction LR"]
    for name, states in GROUPS.items():
        lines += [f"    state {name} {{", *(f"        {state.name}" for state in states), "    }"]
    arrows: dict[tuple[str, str, StateTransition], None] = {}
    for before, row in TRANSITIONS.items():
        for after, kind in row.items():
            if group_of(before) != group_of(after):
                arrows[group_of(before), group_of(after), kind] = None
    lines += [f"    {before} --> {after}: {kind.name}" for before, after, kind in arrows]
    return "\n".join(lines)


def table() -> str:
    """Every step that is allowed, as a Markdown table."""
    lines = ["| from | to |", "|---|---|"]
    for before, row in TRANSITIONS.items():
        by_kind: dict[StateTransition, list[str]] = {}
        for after, kind in row.items():
            by_kind.setdefault(kind, []).append(f"`{after.name}`")
        steps = "; ".join(f"*{kind.name}* {', '.join(names)}" for kind, names in by_kind.items())
        lines.append(f"| `{before.name}` | {steps} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"```mermaid\n{diagram()}\n```\n\n{table()}")
