"""What a plugin of each kind must do, as tests that its author can run: subclass the contract of the kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from vllm_monitor.clock import ManualClock
from vllm_monitor.guardrails import Guardrails
from vllm_monitor.plugin_system import PluginKind, PluginManager, PluginStatus, TargetView
from vllm_monitor.testing.expectations import expect

__all__ = [
    "EXAMPLE_TARGETS",
    "CollectorContract",
    "DetectorContract",
    "ExporterContract",
    "GuardrailContract",
    "PanelContract",
    "PluginContract",
    "StrategyContract",
]

_TURNS = 20
_HEALTHY: TargetView = {
    "state": "processing_requests",
    "condition": "ok",
    "condition_seconds": 600.0,
    "reason": "tokens flow",
    "version": "0.32.0",
    "models": ["example-model"],
    "labels": {"team": "search"},
    "values": {
        "requests_running": 4.0,
        "requests_waiting": 0.0,
        "kv_cache_usage_ratio": 0.2,
        "generation_tokens_per_second": 800.0,
        "health_latency_seconds": 0.002,
    },
    "alerts": [],
}
_DEAD: TargetView = {
    "state": "critical_error",
    "condition": "engine_dead",
    "condition_seconds": 30.0,
    "reason": "the engine has died",
    "version": None,
    "models": [],
    "labels": {},
    "values": {},
    "alerts": [{"name": "engine_dead", "severity": "critical", "since": 1.0, "message": "the engine has died"}],
}
_UNKNOWN: TargetView = {
    "state": "not_started",
    "condition": "unknown",
    "condition_seconds": 0.0,
    "reason": "too little seen yet",
    "version": None,
    "models": [],
    "labels": {},
    "values": {},
    "alerts": [],
}
EXAMPLE_TARGETS: Mapping[str, TargetView] = {
    "http://healthy:8000": _HEALTHY,
    "http://dead:8000": _DEAD,
    "http://unknown:8000": _UNKNOWN,
}
"""A server at work, one that has died, and one of which nothing is known: every plugin meets all three."""


class PluginContract:
    """What every plugin must do.

    Subclass the contract of its kind in a test module, and pytest collects it::

        class TestMine(CollectorContract):
            source = Path("mine.py").read_text()

    Args:
        source: The text of the plugin.
        config: Settings that it needs.
        others: Name to source of the plugins that it depends on; each says its kind itself.
        kind: What it is for; the contract of the kind sets it.
    """

    source: ClassVar[str]
    config: ClassVar[Mapping[str, Any]] = {}
    others: ClassVar[Mapping[str, str]] = {}
    kind: ClassVar[PluginKind]

    def test_it_is_loaded(self) -> None:
        """Its source is Python, declares what makes sense, and takes its settings."""
        with self.running() as (_, manager):
            expect(manager.get("mine").record.plugin_type == self.kind, f"it is no {self.kind}")

    def test_it_lives_without_servers(self) -> None:
        """A watch may have none."""
        self.expect_no_failure({})

    def test_it_lives_with_servers_in_any_state(self) -> None:
        """One that has died has no metrics: none of them may be taken for granted."""
        self.expect_no_failure(EXAMPLE_TARGETS)

    @contextmanager
    def running(self) -> Iterator[tuple[ManualClock, PluginManager]]:
        """The plugin in a manager that has no store and gives turns when told."""
        clock = ManualClock(1_700_000_000.0)
        manager = PluginManager(guardrails=Guardrails(), clock=clock, concurrent=False)
        try:
            for name, source in self.others.items():
                manager.register(name, None, source)
            manager.register("mine", self.kind, self.source, config=self.config)
            manager.start()
            yield clock, manager
        finally:
            manager.close()

    def expect_no_failure(self, targets: Mapping[str, TargetView]) -> PluginStatus:
        """Some turns with these servers, none of which fails."""
        with self.running() as (clock, manager):
            for _ in range(_TURNS):
                manager.step(lambda: targets)
                found = manager.get("mine")
                expect(not found.last_error, f"with {len(targets)} servers it failed: {found.last_error}")
                clock.advance(86_400.0)
            return found


class CollectorContract(PluginContract):
    """A collector: numbers of one name stay numbers of that name."""

    kind = PluginKind.COLLECTOR

    def test_it_has_turns(self) -> None:
        """Called again and again, it answers again and again."""
        expect(self.expect_no_failure(EXAMPLE_TARGETS).calls == _TURNS, "it was not called on every turn")


class DetectorContract(PluginContract):
    """A detector: healthy operation yields silence."""

    kind = PluginKind.DETECTOR

    def test_it_is_silent_on_healthy_servers(self) -> None:
        """A warning about a server at work is a false alarm."""
        healthy = {"http://healthy:8000": _HEALTHY}
        with self.running() as (_, manager):
            for _ in range(_TURNS):
                warnings = manager.call("mine", "detect", targets=healthy)
                expect(not warnings, f"it warned of a healthy server: {warnings}")


class GuardrailContract(PluginContract):
    """A guardrail plugin: its policies are registered, each under a name of its own."""

    kind = PluginKind.GUARDRAIL

    def test_its_policies_are_there(self) -> None:
        """And stay the same however often it is asked."""
        with self.running() as (_, manager):
            first, second = (manager.call("mine", "guardrails") for _ in range(2))
        expect(first, "it has no policies")
        expect(first == second, f"it answered {second} after {first}")


class StrategyContract(PluginContract):
    """A strategy: says what it does; ``{"dry_run": true}`` changes nothing; never claims what it has not verified."""

    kind = PluginKind.STRATEGY

    def test_a_dry_run_says_what_it_would_do(self) -> None:
        """``act`` and ``undo`` answer ``{"done": false, "note": "..."}``, ``verify`` answers true or false."""
        argument = {"dry_run": True, "target": "http://healthy:8000"}
        with self.running() as (_, manager):
            for verb in ("act", "undo"):
                answer = manager.call("mine", verb, argument, EXAMPLE_TARGETS)
                is_well = isinstance(answer, dict) and answer.get("done") is False and answer.get("note")
                expect(is_well, f"a dry run of {verb} answered {answer!r}")
            verified = manager.call("mine", "verify", argument, EXAMPLE_TARGETS)
            expect(isinstance(verified, bool), f"verify answered {verified!r}")


class ExporterContract(PluginContract):
    """An exporter: takes whatever there is to say, and lives when nobody listens."""

    kind = PluginKind.EXPORTER


class PanelContract(PluginContract):
    """A panel: a title and rows."""

    kind = PluginKind.PANEL

    def test_it_shows_something(self) -> None:
        """A title, also when there are no servers."""
        with self.running() as (_, manager):
            manager.step(dict)
            panels = manager.panels()
        expect(len(panels) == 1 and panels[0].title, f"it shows {panels}")
