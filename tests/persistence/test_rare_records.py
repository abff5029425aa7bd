from __future__ import annotations

import asyncio
import dataclasses
import enum
import math
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_monitor.errors import ValueNotStorableError
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import Condition, Event, LifecycleState, Severity, StateCheckpoint, StateTransition

OpenStore = Callable[..., PersistenceManager]

texts = st.text(max_size=10)
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), texts, st.binary(max_size=5))
dicts = st.dictionaries(texts, st.one_of(plain, st.lists(plain, max_size=3), st.tuples(plain)), max_size=3)
times = st.one_of(st.floats(-1e12, 1e12), st.integers(-(10**9), 10**9))
checkpoints = st.builds(
    StateCheckpoint,
    timestamp=times,
    state=st.sampled_from(LifecycleState),
    previous_state=st.none() | st.sampled_from(LifecycleState),
    transition_type=st.none() | st.sampled_from(StateTransition),
    arguments=st.dictionaries(st.sampled_from(["model", "seed", "ünïcode", "\ud800", "p"]), plain, max_size=3),
    environment=st.dictionaries(st.sampled_from(["HOME", "PATH"]), st.text("abc /:", max_size=9), max_size=2),
    hardware_state=dicts,
    error_context=st.none() | dicts,
    interventions_triggered=st.lists(texts, max_size=3),
    guardrails_enforced=st.lists(texts, max_size=3),
    metrics=st.dictionaries(texts, st.floats(allow_nan=False) | st.integers(), max_size=3),
    metadata=dicts,
    checkpoint_id=st.none(),
    target=texts,
    condition=st.none() | st.sampled_from(Condition),
    reason=texts,
)
events = st.builds(
    Event,
    timestamp=times,
    event_type=texts,
    message=texts,
    severity=st.sampled_from(Severity),
    target=texts,
    data=dicts,
    metadata=dicts,
    event_id=st.none(),
)


def checkpoint(timestamp: float, state: LifecycleState = LifecycleState.READY, **fields: Any) -> StateCheckpoint:
    return StateCheckpoint(timestamp, state, None, None, {}, {}, {}, **fields)


def types_of(value: Any) -> Any:
    """The value with its type, at every depth."""
    if dataclasses.is_dataclass(value):
        return [types_of(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        return [(types_of(key), types_of(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [types_of(item) for item in value]
    return type(value), repr(value)


@given(st.lists(checkpoints, max_size=3), st.lists(events, max_size=3))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_round_trip(tmp_path: Path, given_checkpoints: list[StateCheckpoint], given_events: list[Event]) -> None:
    config = PersistenceConfig(storage_dir=tmp_path / "store")  # one store for all examples
    with PersistenceManager(config, synchronous=True) as store:
        expected: dict[str, Any] = {}
        for one in given_checkpoints:
            record_id = store.save_checkpoint(one)
            expected[record_id] = dataclasses.replace(one, checkpoint_id=record_id)
        for event in given_events:
            record_id = store.save_event(event)
            expected[record_id] = dataclasses.replace(event, event_id=record_id)
    with PersistenceManager(config, synchronous=True) as store:
        loaded: dict[str | None, Any] = {one.checkpoint_id: one for one in store.get_checkpoints(limit=None)}
        loaded.update((event.event_id, event) for event in store.get_events(limit=None))
        assert store.health().damaged_rows == 0
    assert {record_id: loaded[record_id] for record_id in expected} == expected
    for record_id, record in expected.items():
        assert types_of(loaded[record_id]) == types_of(record)


def test_a_time_of_minus_zero_comes_back_with_its_sign(open_store: OpenStore) -> None:
    open_store().save_checkpoint(checkpoint(-0.0))
    store = open_store()
    (found,) = store.get_checkpoints()
    assert math.copysign(1, found.timestamp) == -1
    assert store.health().damaged_rows == 0


class Foreign(enum.Enum):
    THING = "thing"


def test_values_that_columns_cannot_hold(open_store: OpenStore) -> None:
    store = open_store()
    odd = StateCheckpoint(
        7,
        "not a state",  # type: ignore[arg-type]  # hostile on purpose
        None,
        "startup",  # type: ignore[arg-type]  # a plain text where an enum belongs
        {"path": Path("/m"), "kind": Foreign.THING, "size": np.int64(5), "nan": math.nan, "bits": {1, 2}},
        {},
        {},
        reason="json:\0",
        target="\udcff",
    )
    store.save_checkpoint(odd)
    store.close()
    (back,) = open_store().get_checkpoints()
    assert (back.timestamp, type(back.timestamp), back.state, type(back.transition_type)) == (
        7,
        int,
        "not a state",
        str,
    )
    assert back.arguments["kind"] is Foreign.THING
    assert math.isnan(back.arguments.pop("nan"))
    assert back.arguments == {"path": Path("/m"), "kind": Foreign.THING, "size": 5, "bits": {1, 2}}
    assert (back.reason, back.target) == ("json:\0", "\udcff")


def test_filters_and_order(open_store: OpenStore) -> None:
    store = open_store()
    for number in range(6):
        state = LifecycleState.READY if number % 2 else LifecycleState.ERROR
        store.save_checkpoint(checkpoint(float(number // 2), state, checkpoint_id=str(number), target=f"t{number % 3}"))
        store.save_event(Event(timestamp=number, event_type=f"e{number % 2}", message="m", event_id=str(number)))

    def ids(**filters: Any) -> list[str | None]:
        return [one.checkpoint_id for one in store.get_checkpoints(**filters)]

    assert ids() == ["5", "4", "3", "2", "1", "0"]
    assert ids(limit=2) == ["5", "4"]
    assert ids(state=LifecycleState.ERROR) == ids(state="ERROR") == ids(state="error") == ["4", "2", "0"]
    assert ids(start_time=1, end_time=1.5) == ["3", "2"]
    assert ids(target="t1") == ["4", "1"]
    assert [event.event_id for event in store.get_events("e1", 2, 5)] == ["5", "3"]


def test_the_same_id_again_replaces(open_store: OpenStore) -> None:
    store = open_store()
    for reason in ("first", "second"):
        assert store.save_checkpoint(checkpoint(1.0, reason=reason, checkpoint_id="a")) == "a"
    assert [one.reason for one in store.get_checkpoints()] == ["second"]


def test_secrets_never_reach_the_file(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    record = StateCheckpoint(
        1.0,
        LifecycleState.READY,
        None,
        None,
        {"api_key": "xyzzy", "argv": ["--api-key", "xyzzy"], "max_tokens": 5},
        {"HF_TOKEN": "xyzzy", "PATH": "/bin"},
        {},
    )
    store.save_checkpoint(record)
    store.enqueue_checkpoint(record)
    for one in store.get_checkpoints():
        assert one.arguments["max_tokens"] == 5
        assert one.environment["PATH"] == "/bin"
        assert "xyzzy" not in repr(one)
    store.close()
    for file in (tmp_path / "store").iterdir():
        assert b"xyzzy" not in file.read_bytes()


def test_rows_are_readable_in_the_shell(open_store: OpenStore, tmp_path: Path) -> None:
    open_store().save_checkpoint(checkpoint(1.0, reason="because", metadata={"a": [1, "ü"]}))
    with sqlite3.connect(tmp_path / "store" / "monitor.db") as connection:
        row = connection.execute("SELECT state, reason, json_extract(metadata, '$.a[1]') FROM checkpoints").fetchone()
    connection.close()
    assert row == ("ready", "because", "ü")


def test_a_damaged_row_is_skipped_and_counted(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    for number in range(3):
        store.save_event(Event(timestamp=number, event_type="x", message=f"message {number}"))
    store.close()
    with sqlite3.connect(tmp_path / "store" / "monitor.db") as connection:
        connection.execute("UPDATE events SET message = 'forged' WHERE timestamp = 1")
    connection.close()
    store = open_store()
    assert [event.message for event in store.get_events()] == ["message 2", "message 0"]
    assert store.health().damaged_rows == 1
    assert not store.health().ok


def test_enqueued_records_are_visible_at_once_and_committed_in_order(open_store: OpenStore) -> None:
    store = open_store()
    ids = [store.enqueue_checkpoint(checkpoint(float(number))) for number in range(50)]
    assert [one.checkpoint_id for one in store.get_checkpoints()] == ids[::-1]
    assert store.flush_all()
    assert all(store.is_durable(record_id) for record_id in ids)
    assert not store.is_durable("never heard of")
    assert [one.checkpoint_id for one in store.get_checkpoints()] == ids[::-1]


def test_unknown_objects_raise_when_saved_and_are_shown_when_enqueued(open_store: OpenStore) -> None:
    class Awkward:
        def __repr__(self) -> str:
            raise RuntimeError

    store = open_store()
    with pytest.raises(ValueNotStorableError):
        store.save_checkpoint(checkpoint(1.0, metadata={"a": object()}))
    with pytest.raises(ValueNotStorableError):
        store.save_event("no event")  # type: ignore[arg-type]  # that is the point
    with pytest.raises(ValueNotStorableError):
        store.enqueue_checkpoint(checkpoint(math.nan))
    store.enqueue_event(
        Event(timestamp=1, event_type="x", message="m", data={"lock": threading.Lock(), "a": Awkward()})
    )
    (event,) = store.get_events()
    assert "lock" in event.data["lock"]
    assert event.data["a"] == "<Awkward whose repr raised RuntimeError>"
    assert store.health().replaced_values == 2


def test_async_forms_do_not_block_the_loop(open_store: OpenStore) -> None:
    store = open_store()

    async def save() -> list[str]:
        return [
            *await asyncio.gather(*(store.save_checkpoint_async(checkpoint(float(n))) for n in range(5))),
            await store.save_event_async(Event(timestamp=1, event_type="x", message="m")),
        ]

    assert all(store.is_durable(record_id) for record_id in asyncio.run(save()))
    assert len(store.get_checkpoints()) == 5
