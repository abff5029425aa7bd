"""Settings of a plugin, as far as they are looked at before it has a process (their schema is checked there)."""

from __future__ import annotations

import json
from typing import Any

from vllm_monitor.errors import PluginError

__all__ = ["plain_config"]

_MOST_CHARACTERS = 1 << 20


def plain_config(name: str, config: Any) -> dict[str, Any]:
    """The settings as JSON values.

    Args:
        name: The plugin's name, for messages.
        config: What the operator gave.

    Raises:
        PluginError: When they are no JSON object.
    """
    try:
        text = json.dumps(config, allow_nan=False)
        plain = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise PluginError(
            f"plugin {name}: its config is no JSON: {error}", hint="give text, numbers, flags, lists and dicts"
        ) from None
    if not isinstance(plain, dict) or len(text) > _MOST_CHARACTERS:
        raise PluginError(
            f"plugin {name}: its config is no dict of at most {_MOST_CHARACTERS} characters",
            hint="give a dict of names to values",
        )
    return plain
