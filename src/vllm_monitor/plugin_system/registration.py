"""What is stored of a plugin that its operator registers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vllm_monitor.errors import ConfigurationError
from vllm_monitor.plugin_system.catalogue import SETTABLE
from vllm_monitor.plugin_system.configuration import plain_config
from vllm_monitor.plugin_system.declaration import checked_kind, checked_name, declaration_of
from vllm_monitor.plugin_system.trust import sha256_of
from vllm_monitor.records import PluginKind, PluginRecord

__all__ = ["record_of_source"]


def record_of_source(
    name: Any,
    plugin_type: PluginKind | str | None,
    source: Any,
    description: Any,
    version: Any,
    config: Any,
    dependencies: Any,
    target: str,
    file: Path | None,
    metadata: Mapping[str, Any],
) -> PluginRecord:
    """The record of what ``PluginManager.register`` was given, and of what the source says of itself.

    Raises:
        PluginError: When the source is no plugin, or its settings are no JSON.
        ConfigurationError: When anything else makes no sense.
    """
    checked_name(name)
    kind = None if plugin_type is None else checked_kind(plugin_type)
    if not isinstance(source, str):
        raise ConfigurationError(
            f"plugin {name}: its source is {type(source).__name__}, not text",
            hint="give the text of a module with the function that its kind needs; a function cannot be stored",
        )
    if "config_schema" in metadata or "environment" in metadata:
        raise ConfigurationError(
            f"plugin {name}: config_schema and environment are part of its source, which is what trust covers",
            hint="write them into PLUGIN = {...} at the top of it",
        )
    said = declaration_of(source, name).kind
    if kind is not None and said is not None and said != kind:
        raise ConfigurationError(f"plugin {name} says it is a {said}, not a {kind}", hint="say the same in both")
    declared = declaration_of(source, name, {**{key: metadata.get(key) for key in SETTABLE}, "kind": kind})
    kept = {"registered_sha256": sha256_of(source), **metadata}
    return PluginRecord(
        name,
        declared.kind.value if declared.kind is not None else "",
        source,
        str(description) or declared.description,
        declared.version if version is None else str(version),
        plain_config(name, {} if config is None else config),
        _texts(name, declared.dependencies if dependencies is None else dependencies),
        metadata={**kept, "file": str(file)} if file is not None else kept,
        target=target,
    )


def _texts(name: str, dependencies: Any) -> list[str]:
    if isinstance(dependencies, str) or not isinstance(dependencies, Iterable):
        raise ConfigurationError(f"plugin {name}: dependencies are no list", hint='give for example ["other>=1.0"]')
    return [str(one) for one in dependencies]
