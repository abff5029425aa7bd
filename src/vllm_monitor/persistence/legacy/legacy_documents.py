"""Plugins, guardrails and strategies of the earlier design, from its JSON files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from vllm_monitor.persistence.legacy.legacy_files import NotUnderstoodError
from vllm_monitor.records import GuardrailPolicy, PluginRecord, StrategyRecord

__all__ = ["DOCUMENTS", "entries_of", "guardrail_of", "is_ours", "plugin_of", "strategy_of"]

_MOST_ENTRIES = 10_000
_FUNCTION = "<function>"  # what the earlier design wrote in place of a condition

Value = TypeVar("Value")


def is_ours(content: Any) -> bool:
    """Whether a JSON file is a document of this design."""
    return isinstance(content, dict) and "version" in content and "entries" in content


def entries_of(content: Any, name_field: str) -> list[tuple[str, dict[str, Any]]]:
    """Name and fields of each entry of a file that holds a dictionary by name, or a list.

    Raises:
        NotUnderstoodError: When it holds neither, or too many.
    """
    if isinstance(content, list):
        pairs = [(one.get(name_field), one) for one in content if isinstance(one, dict)]
    elif isinstance(content, dict):
        pairs = [(name, one) for name, one in content.items() if isinstance(one, dict)]
    else:
        raise NotUnderstoodError("a file holds no entries")
    if len(pairs) != len(content) or len(pairs) > _MOST_ENTRIES or not all(isinstance(name, str) for name, _ in pairs):
        raise NotUnderstoodError("a file holds entries that are none, or too many")
    return [(str(name), fields) for name, fields in pairs]


def plugin_of(name: str, fields: Mapping[str, Any]) -> PluginRecord:
    """A plugin. Its source is data: nobody has trusted it. Raises NotUnderstoodError, as all of these do."""
    return PluginRecord(
        name=name,
        plugin_type=_get(fields, "type", str, "unknown"),
        source=_get(fields, "source_code", str, ""),
        description=_get(fields, "description", str, ""),
        version=_get(fields, "version", str, ""),
        config=_get(fields, "config", dict, {}),
        dependencies=_get(fields, "dependencies", list, []),
        enabled=_get(fields, "enabled", bool, True),
        metadata=_rest(
            fields, "type", "source_code", "description", "version", "config", "dependencies", "enabled", "name"
        ),
    )


def guardrail_of(name: str, fields: Mapping[str, Any]) -> GuardrailPolicy:
    """A guardrail whose condition is text; the earlier design kept nothing of those that were functions."""
    condition = _get(fields, "condition", str, "")
    if condition in ("", _FUNCTION):
        raise NotUnderstoodError("the condition of a guardrail was a function, of which nothing was stored")
    known = ("name", "description", "condition", "intervention", "severity", "enabled", "metadata")
    return GuardrailPolicy(
        name=name,
        description=_get(fields, "description", str, ""),
        condition=condition,
        intervention=fields.get("intervention"),
        severity=_get(fields, "severity", str, "warning"),
        enabled=False,  # its author wrote for another language of conditions; an operator looks at it first
        metadata={**_get(fields, "metadata", dict, {}), **_rest(fields, *known)},
    )


def strategy_of(name: str, fields: Mapping[str, Any]) -> StrategyRecord:
    """A strategy and how it has done."""
    known = ("name", "description", "success_rate", "avg_execution_time", "usage_count", "metadata")
    used = _get(fields, "usage_count", int, 0)
    return StrategyRecord(
        name=name,
        description=_get(fields, "description", str, ""),
        success_rate=_number(fields, "success_rate") if used else None,
        mean_execution_seconds=_number(fields, "avg_execution_time") if used else None,
        attempt_count=used,
        metadata={**_get(fields, "metadata", dict, {}), **_rest(fields, *known)},
    )


DOCUMENTS: Mapping[str, Callable[[str, Mapping[str, Any]], Any]] = {
    "plugins": plugin_of,
    "guardrails": guardrail_of,
    "strategies": strategy_of,
}
"""Kind of document to what makes one."""


def _get(fields: Mapping[str, Any], name: str, kind: type[Value], default: Value) -> Value:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise NotUnderstoodError(f"{name} is no {kind.__name__}")
    return value


def _number(fields: Mapping[str, Any], name: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise NotUnderstoodError(f"{name} is no number")
    return float(value)


def _rest(fields: Mapping[str, Any], *known: str) -> dict[str, Any]:
    rest = {name: value for name, value in fields.items() if name not in known}
    return {"legacy": rest} if rest else {}
