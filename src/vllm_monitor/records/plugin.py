"""Plugins: their kinds, what each is given, and what it answers.

A plugin is one Python module with a function per verb of its kind. It runs in a process of its own, so everything that
goes in and out is JSON: text, numbers, flags, ``None``, lists and dicts with text as keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NotRequired, TypedDict

from vllm_monitor.records.documents import PluginRecord

__all__ = [
    "PLUGIN_VERBS",
    "PluginContext",
    "PluginGuardrail",
    "PluginKind",
    "PluginPanel",
    "PluginSample",
    "PluginState",
    "PluginStatus",
    "PluginStrategy",
    "PluginWarning",
    "TargetView",
]


class PluginKind(StrEnum):
    """What a plugin is for."""

    COLLECTOR = "collector"
    DETECTOR = "detector"
    STRATEGY = "strategy"
    GUARDRAIL = "guardrail"
    EXPORTER = "exporter"
    PANEL = "panel"


PLUGIN_VERBS: Mapping[PluginKind, tuple[str, ...]] = {
    PluginKind.COLLECTOR: ("collect",),
    PluginKind.DETECTOR: ("detect",),
    PluginKind.STRATEGY: ("describe", "act", "verify", "undo"),
    PluginKind.GUARDRAIL: ("guardrails",),
    PluginKind.EXPORTER: ("export",),
    PluginKind.PANEL: ("render",),
}
"""Kind to the functions that its module must have. Each takes one argument, a :class:`PluginContext`.

``collect`` answers a dict of metric names to numbers, or a list of :class:`PluginSample`; ``detect`` a list of
:class:`PluginWarning`; ``guardrails`` a list of :class:`PluginGuardrail`; ``describe`` a :class:`PluginStrategy`;
``render`` a :class:`PluginPanel`; ``export`` nothing. ``collect``, ``detect``, ``export`` and ``render`` are called
again and again, ``guardrails`` and ``describe`` once when the plugin is loaded, ``act``, ``verify`` and ``undo`` when
somebody asks for the strategy (``PluginManager.call``).
"""


class TargetView(TypedDict):
    """One server as a plugin sees it.

    Keys: ``state`` and ``condition`` (and ``condition_seconds``, ``reason``) as in the live view; ``values`` maps
    canonical metric names to numbers, without those that are not known now; ``alerts`` are those that fire, each with
    ``name``, ``severity``, ``since`` and ``message``; ``labels`` are the operator's.
    """

    state: str
    condition: str
    condition_seconds: float
    reason: str
    version: str | None
    models: list[str]
    labels: dict[str, str]
    values: dict[str, float]
    alerts: list[dict[str, Any]]


class PluginContext(TypedDict):
    """What every function of a plugin is given.

    Keys: ``now`` in unix seconds; ``config``, validated, with its defaults; ``targets`` by URL, only those that the
    plugin is for; ``results``: the newest answer of each plugin that it depends on; ``argument``: what a strategy was
    called with, else ``None``.
    """

    now: float
    config: dict[str, Any]
    targets: dict[str, TargetView]
    results: dict[str, Any]
    argument: Any


class PluginSample(TypedDict):
    """One number of a collector; without ``target`` it is one of the monitor as a whole."""

    name: str
    value: float
    labels: NotRequired[dict[str, str]]
    target: NotRequired[str]


class PluginWarning(TypedDict):
    """What a detector expects of a server: that it fails, how, how likely, and in how many seconds."""

    target: str
    failure_type: str
    probability: float
    time_to_failure_seconds: NotRequired[float]
    horizon_seconds: NotRequired[float]
    reasons: NotRequired[list[str]]


class PluginGuardrail(TypedDict):
    """A guardrail, as ``register_guardrail`` takes it."""

    name: str
    condition: str
    description: NotRequired[str]
    intervention: NotRequired[Any]
    severity: NotRequired[str]


class PluginStrategy(TypedDict):
    """What a mitigation strategy says of itself: what it needs, what it touches, and how it is known to have worked."""

    description: str
    needs: list[str]
    touches: list[str]
    verified_by: str
    undone_by: str


class PluginPanel(TypedDict):
    """A few lines for the live view: a title, and rows of a name and a value."""

    title: str
    rows: list[list[Any]]


class PluginState(StrEnum):
    """Whether a plugin runs, and if not, what it waits for."""

    RUNNING = "running"
    READY = "ready"
    UNTRUSTED = "untrusted"
    DISABLED = "disabled"
    WAITING = "waiting"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class PluginStatus:
    """A plugin and how it is doing.

    Args:
        record: As stored.
        state: ``RUNNING`` in this process; ``READY`` to run in a watch; ``UNTRUSTED`` until the operator trusts its
            source; ``DISABLED`` by a person or after failures; ``WAITING`` for a plugin that it depends on;
            ``INVALID`` when it cannot be loaded.
        reason: Why it is in this state, and what to do about it; empty when there is nothing to say.
        sha256: What trust goes by: of its source, or of the files of an installed one.
        calls: Calls of this process so far.
        failures: Of those, how many failed.
        timeouts: Of those, how many took too long.
        last_error: What the newest failure said.
        mean_call_seconds: Mean time of a call; ``None`` before the first.
        metadata: Anything else.
    """

    record: PluginRecord
    state: PluginState
    reason: str = ""
    sha256: str = ""
    calls: int = 0
    failures: int = 0
    timeouts: int = 0
    last_error: str = ""
    mean_call_seconds: float | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name."""
        return self.record.name
