"""A document or model whose own file cannot be written waits by itself: all else is written, and it catches up."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.waiting import wait_until

from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.records import (
    AttemptStatus,
    Event,
    GuardrailPolicy,
    LifecycleState,
    MitigationAttempt,
    StrategyRecord,
)

OpenStore = Callable[..., PersistenceManager]
INTENT = MitigationAttempt(
    "a", 1.0, LifecycleState.DEGRADED, {}, [], "restart", [], status=AttemptStatus.INTENDED
)  # fmt: skip


def block_models(folder: Path) -> Callable[[], None]:
    path = folder / "models"
    path.write_text("in the way")
    return path.unlink


def block_documents(folder: Path) -> Callable[[], None]:
    path = folder / "guardrails.json.new"
    (path / "in the way").mkdir(parents=True)

    def unblock() -> None:
        (path / "in the way").rmdir()
        path.rmdir()

    return unblock


def lock_documents(folder: Path) -> Callable[[], None]:
    descriptor = os.open(folder / "documents.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return lambda: os.close(descriptor)


def save_model(store: PersistenceManager) -> None:
    store.save_model("m", {"w": np.zeros(5000)})


def save_guardrail(store: PersistenceManager) -> None:
    store.save_guardrails([GuardrailPolicy("g", "", "true")])


def stored(store: PersistenceManager) -> tuple[list[str], list[str]]:
    return [one.name for one in store.load_guardrails()], [one.model_name for one in store.list_models()]


@pytest.mark.parametrize(
    ("block", "save"),
    [(block_models, save_model), (block_documents, save_guardrail), (lock_documents, save_guardrail)],
)
def test_it_stops_no_other_record_and_catches_up(
    open_store: OpenStore,
    tmp_path: Path,
    block: Callable[[Path], Callable[[], None]],
    save: Callable[[PersistenceManager], None],
) -> None:
    store = open_store(durable_timeout_seconds=1.0)
    store.flush_all()
    unblock = block(tmp_path / "store")
    save(store)
    for number in range(100):
        store.save_metric("custom", "x", float(number))
    assert store.is_durable(store.save_mitigation_attempt(INTENT)), "no durable intent, no action"
    assert store.is_durable(store.save_event(Event(timestamp=1.0, event_type="t", message="m")))
    wait_until(lambda: "1 records not durable" in store.health().message, "health says what waits")
    assert store.health().hint
    assert stored(store) in ((["g"], []), ([], ["m"])), "readers see it all the same"
    assert not store.flush_all()
    unblock()
    wait_until(lambda: store.health().ok and not store.health().not_durable, "it catches up by itself")
    assert stored(store) in ((["g"], []), ([], ["m"]))
    store.close()
    again = open_store()
    assert stored(again) in ((["g"], []), ([], ["m"]))
    assert len(again.get_metrics(limit=None)) == 100


def test_an_end_meanwhile_loses_only_what_cannot_be_written(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store(durable_timeout_seconds=0.5)
    store.flush_all()
    block_models(tmp_path / "store")
    save_model(store)
    for number in range(10):
        store.save_metric("custom", "x", float(number))
    store.close()
    again = open_store()
    assert len(again.get_metrics(limit=None)) == 10


def test_what_comes_behind_it_keeps_its_order(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store(durable_timeout_seconds=0.5)
    store.save_guardrails([GuardrailPolicy("g", "first", "true")])
    unblock = block_documents(tmp_path / "store")
    for words in ("second", "third"):
        store.save_guardrails([GuardrailPolicy("g", words, "true")])
    store.save_strategies([StrategyRecord("s")])
    assert store.load_guardrails()[0].description == "third"
    unblock()
    wait_until(lambda: store.health().ok, "it catches up")
    assert store.load_guardrails()[0].description == "third"
    assert set(store.load_strategies()) == {"s"}
