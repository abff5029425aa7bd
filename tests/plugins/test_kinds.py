"""Each kind of plugin: its contract, on an example of it, and where its answers go."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import ClassVar

import pytest
from tests.plugins.examples import COUNTER, URL, managed, turns, view

from vllm_monitor.errors import ConfigurationError, PluginError
from vllm_monitor.guardrails import Guardrails
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.plugin_system import PluginState
from vllm_monitor.records import MetricType, PredictionConfidence, PredictionOutcome
from vllm_monitor.testing.plugin_contract import (
    CollectorContract,
    DetectorContract,
    ExporterContract,
    GuardrailContract,
    PanelContract,
    StrategyContract,
)

COLLECTOR = """
def collect(context):
    yield {"name": "my_servers", "value": len(context["targets"])}
    for url, server in context["targets"].items():
        running = server["values"].get("requests_running")
        if running is not None:
            yield {"name": "my_doubled", "value": 2 * running, "target": url, "labels": {"state": server["state"]}}
"""
DETECTOR = """
def detect(context):
    for url, server in context["targets"].items():
        if server["values"].get("requests_running", 0) > 100:
            yield {"target": url, "failure_type": "queue_saturation", "probability": 0.8,
                   "time_to_failure_seconds": 60, "reasons": ["more than a hundred run"]}
"""
GUARDRAIL = """
def guardrails(context):
    return [{"name": "my_busy", "condition": f"requests_running > {context['config'].get('limit', 5.0)} for 10s",
             "description": "It is busy.", "severity": "info"}]
"""
STRATEGY = """
def describe(context):
    return {"description": "Asks the load balancer to send less.", "needs": ["the load balancer"],
            "touches": ["new requests"], "verified_by": "requests_waiting falls", "undone_by": "asking it to send more"}

def act(context):
    if context["argument"]["dry_run"]:
        return {"done": False, "note": "would ask for half the weight"}
    return {"done": True, "note": "asked"}

def verify(context):
    return context["targets"].get(context["argument"]["target"], {}).get("condition") == "ok"

undo = act
"""
EXPORTER = """
import json
def export(context):
    with open(context["config"]["path"], "a") as file:
        file.write(json.dumps({url: server["condition"] for url, server in context["targets"].items()}) + "\\n")
"""
PANEL = """
def render(context):
    return {"title": "mine", "rows": [[url, server["condition"]] for url, server in context["targets"].items()]}
"""

FICKLE = """
asked = 0
def guardrails(context):
    global asked
    asked += 1
    return [{"name": f"g{asked}", "condition": "restarts > 1"}]
"""


class TestCollector(CollectorContract):
    source = COLLECTOR


class TestCounter(CollectorContract):
    source = COUNTER


class TestDetector(DetectorContract):
    source = DETECTOR


class TestGuardrail(GuardrailContract):
    source = GUARDRAIL


class TestStrategy(StrategyContract):
    source = STRATEGY


class TestExporter(ExporterContract):
    source = EXPORTER
    config: ClassVar = {"path": "/dev/null"}


class TestPanel(PanelContract):
    source = PANEL


@pytest.mark.parametrize(
    ("contract", "source", "words"),
    [
        (CollectorContract, "def collect(context):\n    return {'x': context['targets']['y']['values']}\n", "y"),
        (DetectorContract, DETECTOR.replace("> 100", "> 1"), "false|warned of a healthy server"),
        (GuardrailContract, FICKLE, "answered"),
        (StrategyContract, STRATEGY.replace('"done": False', '"done": True'), "dry run"),
        (PanelContract, "def render(context):\n    return {'rows': context['targets']['x']}\n", "KeyError|it shows"),
    ],
)  # fmt: skip
def test_a_contract_can_be_broken(contract: type[CollectorContract], source: str, words: str) -> None:
    broken = type("Broken", (contract,), {"source": source})()
    complaints = []
    for name in dir(broken):
        if name.startswith("test_"):
            try:
                getattr(broken, name)()
            except AssertionError as error:
                complaints.append(str(error))
    assert re.search(words, " ".join(complaints))


def test_samples_land_in_the_store_like_any_other(tmp_path: Path) -> None:
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store, managed(store) as (manager, clock):
        manager.register("mine", "collector", COLLECTOR)
        turns(manager, clock, 1, **{URL: view()})
        doubled, servers = sorted(store.get_metrics(MetricType.CUSTOM), key=lambda one: str(one["metric_name"]))
        assert (doubled["metric_name"], doubled["value"], doubled["tags"]) == ("my_doubled", 4.0, {"state": "serving"})
        assert store.get_metrics(target=URL) == [doubled]
        assert doubled["timestamp"] == 1_700_000_000.0
        assert (servers["metric_name"], servers["value"]) == ("my_servers", 1.0)


def test_one_for_a_single_server_sees_only_that_and_its_samples_are_of_it(tmp_path: Path) -> None:
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store, managed(store) as (manager, clock):
        manager.register("mine", "collector", COLLECTOR, target=URL)
        turns(manager, clock, 1, **{URL: view(), "http://other:1": view()})
        assert {one["metric_name"]: one["value"] for one in store.get_metrics(target=URL)} == {
            "my_doubled": 4.0,
            "my_servers": 1.0,
        }
        assert len(store.get_metrics(MetricType.CUSTOM)) == 2


def test_a_warning_becomes_one_prediction_for_as_long_as_it_is_open(tmp_path: Path) -> None:
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store:
        with managed(store) as (manager, clock):
            manager.register("mine", "detector", DETECTOR, version="3", interval_seconds=10)
            busy = {URL: view(values={"requests_running": 101.0})}
            for _ in range(3):
                manager.step(lambda: busy)
                clock.advance(10.0)
            (made,) = store.get_predictions()
            assert (made.failure_type, made.probability, made.time_to_failure) == ("queue_saturation", 0.8, 60.0)
            assert (made.target, made.outcome) == (URL, PredictionOutcome.OPEN)
            assert (made.confidence, made.model_version) == (PredictionConfidence.HIGH, "mine 3")
            assert made.contributing_factors == ["more than a hundred run"]
            trust = manager.trust_list
        with managed(store, trust=trust) as (manager, clock):  # after a restart, too
            manager.step(lambda: busy)
            assert len(store.get_predictions()) == 1
            clock.advance(400.0)
            manager.step(lambda: busy)
            assert len(store.get_predictions()) == 2


def test_predictions_are_handed_out_once_and_what_is_settled_is_not_open(tmp_path: Path) -> None:
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store, managed(store) as (manager, clock):
        manager.register("mine", "detector", DETECTOR, interval_seconds=10)
        busy = {URL: view(values={"requests_running": 101.0})}
        manager.step(lambda: busy)
        (made,) = manager.take_predictions(URL)
        assert [made] == store.get_predictions()
        assert manager.take_predictions(URL) == manager.take_predictions("http://other:1") == []
        assert manager.open_predictions(URL, clock.now()) == {"queue_saturation": 0.8}
        manager.note_resolved(made)
        assert manager.open_predictions(URL, clock.now()) == {}
        for _ in range(3):  # it warns on, and is not heard before the horizon of its last warning has ended
            clock.advance(10.0)
            manager.step(lambda: busy)
        assert manager.take_predictions(URL) == []
        clock.advance(400.0)
        manager.step(lambda: busy)
        assert len(manager.take_predictions(URL)) == 1
        assert manager.open_predictions(URL, clock.now()) == {"queue_saturation": 0.8}


def test_policies_are_there_survive_and_go_with_their_plugin(tmp_path: Path) -> None:
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store:
        guardrails = Guardrails(store)
        with managed(store, guardrails=guardrails) as (manager, clock):
            manager.register("mine", "guardrail", GUARDRAIL, config={"limit": 7.5})
            turns(manager, clock, 2)
            policy = guardrails.get("my_busy").policy
            assert policy.condition == "requests_running > 7.5 for 10s"
            assert policy.metadata == {"plugin": "mine"}
            guardrails.enable("my_busy", enabled=False)
            trust = manager.trust_list
        guardrails = Guardrails(store)
        with managed(store, guardrails=guardrails, trust=trust) as (manager, clock):
            turns(manager, clock, 1)
            assert not guardrails.get("my_busy").policy.enabled  # as the operator left it
            manager.register("mine", "guardrail", GUARDRAIL.replace("my_busy", "my_other"), config={"limit": 7.5})
            turns(manager, clock, 1)
            assert guardrails.get("my_other").policy.enabled
            with pytest.raises(ConfigurationError):
                guardrails.get("my_busy")
            guardrails.enable("my_other", enabled=False)
            for is_on in (False, True):  # as the operator left it, also after the plugin was off for a while
                manager.enable("mine", enabled=is_on)
                turns(manager, clock, 1)
                assert not guardrails.get("my_other").policy.enabled
            guardrails.enable("my_other")
            manager.enable("mine", enabled=False)
            assert not guardrails.get("my_other").policy.enabled
            manager.enable("mine")
            turns(manager, clock, 1)
            assert guardrails.get("my_other").policy.enabled
            manager.remove("mine")
            with pytest.raises(ConfigurationError):
                guardrails.get("my_other")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (GUARDRAIL.replace("requests_running", "requests_runing"), "requests_running"),
        (GUARDRAIL.replace("my_busy", "engine_stall"), "already"),
        (GUARDRAIL.replace('"info"', '"loud"'), "loud"),
        ("def guardrails(context):\n    return [{'name': 'x'}]\n", "no condition"),
        (GUARDRAIL.replace('"info"', "[]"), "severity"),
        (GUARDRAIL.replace('"info"', "{}"), "severity"),
    ],
)
def test_policies_that_make_no_sense_are_refused_when_the_plugin_is_added(source: str, words: str) -> None:
    guardrails = Guardrails()
    before = guardrails.all()
    with managed(guardrails=guardrails) as (manager, _), pytest.raises(PluginError, match=words):
        manager.register("mine", "guardrail", source)
    assert guardrails.all() == before


def test_a_strategy_is_known_with_what_it_says_and_keeps_its_record(tmp_path: Path) -> None:
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store, managed(store) as (manager, clock):
        manager.register("mine", "strategy", STRATEGY, version="1")
        turns(manager, clock, 1)
        known = store.load_strategies()["mine"]
        assert known.metadata["touches"] == ["new requests"]
        store.save_strategies({"mine": {"attempt_count": 3}})
        manager.register("mine", "strategy", STRATEGY, version="2")
        turns(manager, clock, 1)
        known = store.load_strategies()["mine"]
        assert (known.attempt_count, known.metadata["version"]) == (3, "2")
        assert manager.call("mine", "verify", {"target": URL}, {URL: view()}) is True
        assert manager.call("mine", "act", {"dry_run": False}) == {"done": True, "note": "asked"}
        with pytest.raises(ConfigurationError, match="describe, act, verify, undo"):
            manager.call("mine", "collect")
        with pytest.raises(PluginError, match="verified_by"):
            manager.register("mine", "strategy", STRATEGY.replace('"verified_by": "requests_waiting falls", ', ""))


def test_an_exporter_is_told_of_every_turn(tmp_path: Path) -> None:
    with managed() as (manager, clock):
        manager.register("mine", "exporter", EXPORTER, config={"path": str(tmp_path / "out")})
        turns(manager, clock, 2, **{URL: view()})
    assert [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()] == [{URL: "ok"}] * 2


def test_a_panel_shows_its_rows_until_the_plugin_ends() -> None:
    with managed() as (manager, clock):
        manager.register("mine", "panel", PANEL)
        turns(manager, clock, 1, **{URL: view()})
        (panel,) = manager.panels()
        assert (panel.title, panel.rows) == ("mine", ((URL, "ok"),))
        assert [one.name for one in manager.all("panel")] == ["mine"]
        assert manager.all("collector") == []
        manager.enable("mine", enabled=False)
        assert manager.panels() == []
        assert manager.get("mine").state is PluginState.DISABLED


def test_own_figures_are_stored(tmp_path: Path) -> None:
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store, managed(store) as (manager, clock):
        manager.register("mine", "collector", COUNTER)
        turns(manager, clock, 2)
        (newest, _) = store.get_metrics(MetricType.MONITOR, "vllm_monitor_plugin_calls_total")
        assert (newest["value"], newest["tags"]) == (2.0, {"plugin": "mine"})
