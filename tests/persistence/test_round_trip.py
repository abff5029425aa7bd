"""What is saved comes back equal by type and bits: while it is pending, committed, and after a restart."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from tests.persistence.hostile import Foreign, enqueue, everything, one_of_each, typed

from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import LifecycleState, StateCheckpoint

OpenStore = Callable[..., PersistenceManager]


@given(one_of_each())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_kind_of_record(records: list[Any]) -> None:
    # A store for each example: an id of an earlier one may have been used by a record that is further along.
    with TemporaryDirectory() as folder:
        config = PersistenceConfig(storage_dir=Path(folder) / "store", durable_timeout_seconds=60)
        with PersistenceManager(config) as store:
            with closing(sqlite3.connect(config.db_path, isolation_level=None)) as blocker:
                blocker.execute("BEGIN IMMEDIATE")  # nothing can be committed
                expected = {enqueue(store, record): typed(_as_loaded(record)) for record in records}
                assert len(expected) == len(records)
                _assert_loaded(everything(store), expected)
                assert not any(store.is_durable(record_id) for record_id in expected)
            assert store.flush_all()
            _assert_loaded(everything(store), expected)
            assert store.health().replaced_values == 0
        with PersistenceManager(config, synchronous=True) as store:
            _assert_loaded(everything(store), expected)
            assert store.health().ok


def _as_loaded(record: Any) -> Any:
    if not isinstance(record, dict):
        return record
    order = ("target", "timestamp", "learning_type", "state_context", "action_taken", "reward", "metadata")
    return {name: record[name] for name in order}


def _assert_loaded(loaded: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {record_id: typed(loaded[record_id]) for record_id in expected} == expected


@pytest.mark.parametrize("compression_enabled", [True, False])
def test_large_learning_values_are_packed_only_when_asked(open_store: OpenStore, compression_enabled: bool) -> None:
    store = open_store(compression_enabled=compression_enabled)
    context = {"history": ["the same words"] * 2000}
    store.save_learning_data("q", context, "restart", 0.5)
    (found,) = store.get_learning_data()
    assert found["state_context"] == context
    with closing(sqlite3.connect(store.config.db_path)) as connection:
        (column,) = connection.execute("SELECT state_context FROM learning_data").fetchone()
    assert column.startswith("zlib:" if compression_enabled else '{"history":')


def test_a_time_of_minus_zero_comes_back_with_its_sign(open_store: OpenStore) -> None:
    open_store().save_checkpoint(StateCheckpoint(-0.0, LifecycleState.READY, None, None, {}, {}, {}))
    store = open_store()
    (found,) = store.get_checkpoints()
    assert math.copysign(1, found.timestamp) == -1
    assert store.health().damaged_rows == 0


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
