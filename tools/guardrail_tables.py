"""Prints the tables of docs/guardrails.md: ``python tools/guardrail_tables.py [names|policies]``."""

from __future__ import annotations

import sys

from vllm_monitor.guardrails import METRICS, VARIABLES, builtin_policies

_TYPES = {str: "text", bool: "true or false", int: "whole number", float: "real number", dict: "map"}


def names() -> str:
    """The names that are no metrics, as a Markdown table."""
    lines = ["| name | type | meaning |", "|---|---|---|"]
    lines += [
        f"| `{variable.name}` | {_TYPES[type(variable.example)]} | {variable.help} |"
        for variable in VARIABLES.values()
        if variable.name not in METRICS
    ]
    return "\n".join(lines)


def policies() -> str:
    """The guardrails of the package, as a Markdown table."""
    lines = ["| name | severity | condition | asks for |", "|---|---|---|---|"]
    for policy in builtin_policies():
        condition = policy.condition.replace("||", "\\|\\|")
        asks = f"`{policy.intervention}`" if policy.intervention else "-"
        lines.append(f"| `{policy.name}` | {policy.severity} | `{condition}` | {asks} |")
    return "\n".join(lines)


def runbooks() -> str:
    """What to do about each."""
    return "\n\n".join(
        f"**`{policy.name}`**: {policy.description}. {policy.metadata['runbook']}" for policy in builtin_policies()
    )


if __name__ == "__main__":
    for wanted in sys.argv[1:] or ["names", "policies", "runbooks"]:
        print({"names": names, "policies": policies, "runbooks": runbooks}[wanted]())
        print()
