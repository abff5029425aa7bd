"""Settings of a plugin, checked against the JSON Schema (draft 2020-12) that it declares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vllm_monitor.errors import PluginError

__all__ = ["checked_config"]


def checked_config(name: str, config: Mapping[str, Any], schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings, with the defaults of the schema filled in.

    Args:
        name: The plugin's name, for messages.
        config: What the operator gave.
        schema: JSON Schema; ``None`` accepts anything that JSON can say.

    Raises:
        PluginError: When they do not match, the schema is none, or they are no JSON.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(config), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise PluginError(
            f"plugin {name}: its config is no JSON: {error}", hint="give text, numbers, flags, lists and dicts"
        ) from None
    if schema is None:
        return plain
    from jsonschema import Draft202012Validator, SchemaError  # noqa: PLC0415  # 90 ms; only who has a schema pays them
    from jsonschema.exceptions import best_match  # noqa: PLC0415
    from referencing import Registry  # noqa: PLC0415
    from referencing.exceptions import Unresolvable  # noqa: PLC0415

    try:
        Draft202012Validator.check_schema(dict(schema))
    except SchemaError as error:
        raise PluginError(
            f"plugin {name}: its config_schema is no JSON Schema: {error.message}", hint="correct its PLUGIN = {...}"
        ) from None
    properties = schema.get("properties")
    if isinstance(properties, Mapping):
        for key, wanted in properties.items():
            if isinstance(wanted, Mapping) and "default" in wanted:
                plain.setdefault(key, wanted["default"])
    # An empty registry: a schema must not make us fetch what it refers to.
    validator = Draft202012Validator(dict(schema), registry=Registry())
    try:
        fault = best_match(validator.iter_errors(plain))
    except (Unresolvable, RecursionError) as error:
        raise PluginError(
            f"plugin {name}: its config_schema cannot be followed: {error}", hint="write it without outside references"
        ) from None
    if fault is not None:
        place = ".".join(map(str, fault.absolute_path))
        raise PluginError(
            f"plugin {name}: its config makes no sense: {f'{place}: ' if place else ''}{fault.message}",
            hint=f"correct it; it may have {', '.join(properties) if isinstance(properties, Mapping) else 'nothing'}",
        )
    return plain
