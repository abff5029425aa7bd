"""What an operator configures and edits: guardrails, plugins, strategies."""

from __future__ import annotations

import hashlib
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

__all__ = ["GuardrailPolicy", "PluginRecord", "StrategyRecord"]


@dataclass(frozen=True, slots=True)
class GuardrailPolicy:
    """A condition that must not be met, and what to do when it is.

    Args:
        name: Unique within a store.
        description: For a person.
        condition: A declarative expression; it cannot run code.
        intervention: What to do: the name of a strategy, or its name and parameters.
        severity: ``info``, ``warning`` or ``critical``, or a word of your own.
        enabled: Whether it is evaluated.
        metadata: Anything else.
        target: The only server it is for; empty for all.
    """

    name: str
    description: str
    condition: str
    intervention: Any = None
    severity: str = "warning"
    enabled: bool = True
    metadata: dict[str, Any] = field(default_factory=dict)
    _: KW_ONLY
    target: str = ""

    def __post_init__(self) -> None:
        # An enum would be stored as its class; in a document that people edit it is the word that counts.
        object.__setattr__(self, "severity", str(self.severity))


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """A plugin as stored: data only. Whether its source may run is decided elsewhere, by its ``sha256``.

    Args:
        name: Unique within a store.
        plugin_type: What kind of plugin it is.
        source: Its source text; empty for one that is installed.
        description: For a person.
        version: Its version.
        config: Its settings.
        dependencies: Names of plugins that must be loaded before it.
        enabled: Whether it is loaded.
        metadata: Anything else.
        target: The only server it is for; empty for all.
        sha256: Of ``source`` in UTF-8; computed when it is left empty.
    """

    name: str
    plugin_type: str
    source: str = ""
    description: str = ""
    version: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    dependencies: list[str] = field(default_factory=list)
    enabled: bool = True
    metadata: dict[str, Any] = field(default_factory=dict)
    _: KW_ONLY
    target: str = ""
    sha256: str = ""

    def __post_init__(self) -> None:
        if not self.sha256:
            digest = hashlib.sha256(self.source.encode("utf-8", "surrogatepass")).hexdigest()
            object.__setattr__(self, "sha256", digest)


@dataclass(frozen=True, slots=True)
class StrategyRecord:
    """A mitigation strategy and how it has done so far.

    Args:
        name: Unique within a store.
        description: For a person.
        enabled: Whether it may be chosen.
        config: Its settings.
        success_rate: Share of attempts that succeeded, 0 to 1; ``None`` before the first.
        mean_execution_seconds: Mean time an attempt took.
        attempt_count: Settled attempts.
        outcome_counts: Name of an outcome to how often it came.
        context_performance: Figures by state, error or pattern.
        metadata: Anything else.
        target: The only server these figures are of; empty for all.
    """

    name: str
    description: str = ""
    enabled: bool = True
    config: dict[str, Any] = field(default_factory=dict)
    success_rate: float | None = None
    mean_execution_seconds: float | None = None
    attempt_count: int = 0
    outcome_counts: dict[str, int] = field(default_factory=dict)
    context_performance: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    _: KW_ONLY
    target: str = ""
