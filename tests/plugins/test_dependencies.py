"""Plugins that need others: order, missing ones, versions, circles."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.plugins.examples import COUNTER, managed, turns

from vllm_monitor.errors import PluginError
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.plugin_system import PluginState
from vllm_monitor.plugin_system.dependencies import load_order

READER = """
def collect(context):
    first = context["results"]["counter"]
    return {"seen": first["my_turns"] if first else 0}
"""


def test_it_is_loaded_after_what_it_needs_and_sees_its_answers(tmp_path: Path) -> None:
    config = PersistenceConfig(storage_dir=tmp_path)
    with PersistenceManager(config) as store, managed(store) as (manager, clock):
        manager.register("counter", "collector", COUNTER)
        manager.register("a_reader", "collector", READER, dependencies=["counter>=1.0"])
        turns(manager, clock, 2)
        assert [one["value"] for one in store.get_metrics(metric_name="seen")] == [2.0, 1.0]
        trust = manager.trust_list
    with PersistenceManager(config) as store, managed(store, trust=trust) as (manager, clock):
        assert [one.name for one in manager.all()] == ["counter", "a_reader"]
        clock.advance(1000.0)
        turns(manager, clock, 1)
        assert store.get_metrics(metric_name="seen")[0]["value"] == 1.0


def test_without_what_it_needs_it_waits_and_goes_on_by_itself() -> None:
    with managed() as (manager, clock):
        manager.register("counter", "collector", COUNTER)
        manager.register("reader", "collector", READER, dependencies=["counter"])
        manager.enable("counter", enabled=False)
        waiting = manager.get("reader")
        assert waiting.state is PluginState.WAITING
        assert "needs counter, which is disabled: switched off" in waiting.reason
        manager.enable("counter")
        turns(manager, clock, 1)
        assert manager.get("reader").state is PluginState.RUNNING
        manager.remove("counter")
        assert "needs counter, which is not there" in manager.get("reader").reason
        assert manager.get("reader").state is PluginState.WAITING


def test_versions_that_will_not_do_are_named() -> None:
    with managed() as (manager, _):
        manager.register("counter", "collector", COUNTER)
        with pytest.raises(PluginError, match=r"needs counter>=2, but counter is 1\.0"):
            manager.register("reader", "collector", READER, dependencies=["counter>=2"])
        manager.register("reader", "collector", READER, dependencies=["counter<2"])
        manager.register("counter", "collector", COUNTER, version="2.1")
        assert manager.get("reader").state is PluginState.WAITING
        assert "needs counter<2, but counter is 2.1" in manager.get("reader").reason


def test_a_circle_is_named_whole_and_refused() -> None:
    with managed() as (manager, clock):
        manager.register("a", "collector", COUNTER)
        manager.register("b", "collector", COUNTER, dependencies=["a"])
        manager.register("c", "collector", COUNTER, dependencies=["b"])
        with pytest.raises(
            PluginError, match=r"circle: (a needs c needs b needs a|b needs a needs c needs b|c needs b)"
        ):
            manager.register("a", "collector", COUNTER, dependencies=["c"])
        turns(manager, clock, 1)
        assert [one.state for one in manager.all()] == [PluginState.RUNNING] * 3


NAMES = st.sampled_from("abcdef")


@given(needs=st.dictionaries(NAMES, st.sets(NAMES), max_size=6))
def test_order(needs: dict[str, set[str]]) -> None:
    order, circles = load_order(needs)
    assert sorted(order) == sorted(needs)
    for name, needed in needs.items():
        if name not in circles:
            after = {other for other in needed if other in needs}
            assert all(order.index(other) < order.index(name) for other in after)
    assert set(circles) <= set(needs)
    reached: dict[str, set[str]] = {name: {one for one in needs[name] if one in needs} for name in needs}
    for _ in needs:
        for name in needs:
            reached[name] = reached[name].union(*(reached[other] for other in reached[name]))
    in_circle = {name for name in needs if name in reached[name]}
    assert set(circles) <= in_circle
    assert bool(circles) == bool(in_circle)
