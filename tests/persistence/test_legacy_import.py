"""Import of the earlier design's folder, also of one that somebody made to do harm."""

from __future__ import annotations

import base64
import json
import math
import os
import pickle
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from vllm_monitor.errors import ArchiveError
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.persistence.legacy.legacy_import import import_legacy, is_legacy
from vllm_monitor.records import (
    LifecycleState,
    MitigationOutcome,
    PredictionConfidence,
    PredictionOutcome,
    StateTransition,
)

OpenStore = Callable[..., PersistenceManager]

COLUMNS = {
    "metrics": "timestamp REAL, metric_type TEXT, metric_name TEXT, value REAL, tags TEXT, metadata TEXT",
    "checkpoints": (
        "timestamp REAL, state TEXT, previous_state TEXT, transition_type TEXT, arguments TEXT, environment TEXT,"
        " hardware_state TEXT, metrics TEXT, guardrail_violations TEXT, interventions TEXT"
    ),
    "predictions": (
        "timestamp REAL, checkpoint_id INTEGER, failure_type TEXT, probability REAL, confidence REAL,"
        " time_to_failure REAL, contributing_factors TEXT, preventive_actions TEXT, pattern_matches TEXT,"
        " actual_outcome TEXT"
    ),
    "mitigation_attempts": (
        "attempt_id TEXT UNIQUE, timestamp REAL, initial_state TEXT, initial_metrics TEXT, error_context TEXT,"
        " strategy_name TEXT, interventions_executed TEXT, execution_time REAL, outcome TEXT, final_state TEXT,"
        " final_metrics TEXT, side_effects TEXT"
    ),
    "happy_paths": (
        "path_id TEXT UNIQUE, name TEXT, description TEXT, start_state TEXT, end_state TEXT, checkpoints TEXT,"
        " metrics_profile TEXT, guardrails TEXT, duration REAL, success_count INTEGER DEFAULT 0,"
        " failure_count INTEGER DEFAULT 0, last_success TIMESTAMP, updated_at TIMESTAMP"
    ),
    "learning_data": (
        "timestamp REAL, learning_type TEXT, state_context TEXT, action_taken TEXT, reward REAL, metadata TEXT"
    ),
}


def packed(value: Any) -> str:
    return base64.b64encode(zlib.compress(json.dumps(value).encode())).decode()


def insert(connection: sqlite3.Connection, table: str, **row: Any) -> None:
    names, marks = ", ".join(row), ", ".join("?" * len(row))
    query = f"INSERT INTO {table} ({names}) VALUES ({marks})"  # noqa: S608  # names of this test
    connection.execute(query, list(row.values()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the earlier design leaves behind."""
    folder = tmp_path / "earlier"
    (folder / "models").mkdir(parents=True)
    with closing(sqlite3.connect(folder / "monitor.db", isolation_level=None)) as connection:
        connection.execute("BEGIN")
        for table, columns in COLUMNS.items():
            connection.execute(
                f"CREATE TABLE {table} (id INTEGER PRIMARY KEY AUTOINCREMENT, {columns},"
                " created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)"
            )
        for number in range(5):
            insert(
                connection,
                "metrics",
                timestamp=100.0 + number,
                metric_type="performance",
                metric_name="latency",
                value=None if number == 3 else number / 10,
                tags=json.dumps({"model": "m", "b": "ü"}),
                metadata=packed({"n": number} if number else {}),
            )
        insert(
            connection,
            "checkpoints",
            timestamp=100.0,
            state="LOADING_MODEL",
            previous_state=None,
            transition_type="STARTUP",
            arguments=packed({"model": "m", "api_key": "xyzzy"}),
            environment=json.dumps({"HF_TOKEN": "xyzzy", "PATH": "/bin"}),
            hardware_state=packed({"gpus": 1}),
            metrics=packed({"memory": 0.5}),
            guardrail_violations=packed(["queue"]),
            interventions=packed([]),
        )
        insert(connection, "checkpoints", timestamp=200.0, state="SERVING", previous_state="READY")
        prediction = {"timestamp": 210.0, "failure_type": "oom", "probability": 0.9, "contributing_factors": '["kv"]'}
        insert(connection, "predictions", **prediction, checkpoint_id=1, confidence=0.95, actual_outcome="occurred")
        insert(connection, "predictions", **prediction, confidence="high", preventive_actions="[]")
        insert(connection, "predictions", **prediction, confidence=0.1, actual_outcome="a story")
        insert(
            connection,
            "mitigation_attempts",
            attempt_id="a1",
            timestamp=220.0,
            initial_state="ERROR",
            initial_metrics=packed({"memory": 0.9}),
            error_context='["out of memory"]',
            strategy_name="reduce_batch",
            interventions_executed='["batch"]',
            execution_time=2.5,
            outcome="SUCCESS",
            final_state="SERVING",
            final_metrics=packed({"memory": 0.4}),
            side_effects="[]",
        )
        insert(
            connection,
            "happy_paths",
            path_id="p1",
            name="start",
            description="from start to ready",
            start_state="INITIALIZING",
            end_state="READY",
            checkpoints=packed(
                [
                    {"timestamp": 1.0, "state": "INITIALIZING", "metrics": {}},
                    {"timestamp": 9.0, "state": "READY", "metrics": {"m": 1}},
                ]
            ),
            metrics_profile=packed({"ttft": {"mean": 0.1}}),
            guardrails='["queue"]',
            duration=8.0,
            success_count=3,
            updated_at="2024-05-01 12:00:00",
            created_at="2024-05-01 11:00:00",
        )
        insert(
            connection,
            "learning_data",
            timestamp=230.0,
            learning_type="q",
            state_context=packed({"state": "ERROR"}),
            action_taken="restart",
            reward=1.0,
            metadata=packed({}),
        )
        connection.execute("COMMIT")
    entries = {"type": "collector", "source_code": "raise SystemExit", "config": {"a": 1}, "created_at": 5.0}
    (folder / "plugins.json").write_text(json.dumps({"mine": entries}))
    guardrails = [{"name": name, "description": "d", "condition": text} for name, text in RULES.items()]
    (folder / "guardrails.json").write_text(json.dumps(guardrails))
    strategy = {"description": "d", "success_rate": 0.5, "avg_execution_time": 2.0, "usage_count": 4, "last_used": 9.0}
    (folder / "strategies.json").write_text(json.dumps({"restart": strategy, "new": {"usage_count": 0}}))
    (folder / "models" / "q.pkl").write_bytes(pickle.dumps(Bomb()))
    return folder


RULES = {"function": "<function>", "text": "queue > 5"}


class Bomb:
    def __reduce__(self) -> Any:
        return (os.abort, ())


def test_everything_that_can_be_understood(open_store: OpenStore, folder: Path) -> None:
    store = open_store()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    report = import_legacy(folder, store)
    assert report.counts == {
        "samples": 5,
        "checkpoints": 2,
        "predictions": 3,
        "mitigation_attempts": 1,
        "happy_paths": 1,
        "learning_data": 1,
        "plugins": 1,
        "guardrails": 1,
        "strategies": 2,
    }
    assert report.added == report.counts
    assert list(report.not_understood.values()) == [1]
    assert any("'function'" in note for note in report.notes)
    assert any("1 pickled models" in note and "q" in note for note in report.notes)

    samples = store.get_metrics("performance", "latency")
    assert [(one["timestamp"], one["metadata"]) for one in samples] == [
        (104.0, {"n": 4}),
        (103.0, {"n": 3}),
        (102.0, {"n": 2}),
        (101.0, {"n": 1}),
        (100.0, {}),
    ]
    assert [one["value"] for one in samples if one["timestamp"] != 103.0] == [0.4, 0.2, 0.1, 0.0]
    assert math.isnan(samples[1]["value"])
    assert samples[0]["tags"] == {"model": "m", "b": "ü"}

    second, first = store.get_checkpoints()
    assert (first.state, first.transition_type) == (LifecycleState.LOADING_MODEL, StateTransition.STARTUP)
    assert (first.arguments["model"], first.environment["PATH"]) == ("m", "/bin")
    assert "xyzzy" not in repr(first)
    assert (first.metrics, first.guardrails_enforced) == ({"memory": 0.5}, ["queue"])
    assert (second.previous_state, second.arguments) == (LifecycleState.READY, {})

    told, open_one, resolved = store.get_predictions()
    assert (resolved.checkpoint_id, resolved.current_state) == (first.checkpoint_id, LifecycleState.LOADING_MODEL)
    assert (resolved.outcome, resolved.confidence) == (PredictionOutcome.HAPPENED, PredictionConfidence.VERY_HIGH)
    assert (open_one.outcome, open_one.current_state) == (PredictionOutcome.OPEN, LifecycleState.SERVING)
    assert open_one.confidence is PredictionConfidence.HIGH
    assert (told.outcome, told.metadata["legacy"]["actual_outcome"]) == (PredictionOutcome.CENSORED, "a story")

    (attempt,) = store.get_mitigation_history(outcome=MitigationOutcome.SUCCESS)
    assert (attempt.attempt_id, attempt.final_metrics, attempt.execution_time) == ("a1", {"memory": 0.4}, 2.5)
    (path,) = store.get_happy_paths(start_state="initializing", end_state="ready")
    assert (path.success_count, path.updated_at - path.timestamp) == (3, 3600.0)
    assert path.metadata["legacy"]["description"] == "from start to ready"
    assert path.checkpoints[1].metrics == {"m": 1}
    (experience,) = store.get_learning_data("q")
    assert (experience["state_context"], experience["action_taken"]) == ({"state": "ERROR"}, "restart")

    plugin = store.load_plugins()["mine"]
    assert (plugin.source, plugin.config, plugin.metadata["legacy"]) == (
        "raise SystemExit",
        {"a": 1},
        {"created_at": 5.0},
    )
    (guardrail,) = store.load_guardrails()
    assert (guardrail.name, guardrail.condition, guardrail.enabled) == ("text", "queue > 5", False)
    strategies = store.load_strategies()
    assert (strategies["restart"].success_rate, strategies["restart"].attempt_count) == (0.5, 4)
    assert strategies["new"].success_rate is None
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_importing_twice_is_importing_once(open_store: OpenStore, folder: Path) -> None:
    store = open_store()
    first = import_legacy(folder, store)
    counts = store.get_statistics()["counts"]
    store.update_happy_path_stats("p1", True)
    again = import_legacy(folder, store)
    assert again.counts == first.counts
    assert not any(again.added.values())
    assert store.get_statistics()["counts"] == counts
    assert [path.success_count for path in store.get_happy_paths()] == [4]
    with closing(sqlite3.connect(folder / "monitor.db", isolation_level=None)) as connection:
        connection.execute("UPDATE predictions SET actual_outcome = 'false' WHERE id = 2")
        insert(connection, "metrics", timestamp=1.0, metric_type="x", metric_name="y", value=1.0)
    later = import_legacy(folder, store)
    assert {name: number for name, number in later.added.items() if number} == {"samples": 1, "predictions": 1}
    assert len(store.get_predictions(outcome="did_not_happen")) == 1
    assert len(store.get_predictions()) == 3


def test_other_columns_and_values_that_make_no_sense(open_store: OpenStore, folder: Path) -> None:
    with closing(sqlite3.connect(folder / "monitor.db", isolation_level=None)) as connection:
        connection.execute("DROP TABLE learning_data")
        connection.execute("ALTER TABLE mitigation_attempts ADD COLUMN cost REAL DEFAULT 3.5")
        connection.execute("ALTER TABLE predictions DROP COLUMN preventive_actions")
        connection.execute("CREATE TABLE extra (a)")
        insert(connection, "checkpoints", timestamp="yesterday", state="READY")
        insert(connection, "checkpoints", timestamp=1.0, state="DREAMING")
        insert(connection, "checkpoints", timestamp=1.0, state="READY", arguments="no JSON")
        insert(connection, "metrics", timestamp=1.0, metric_type="x", metric_name="y", value="much")
        insert(connection, "metrics", timestamp=9e99, metric_type="x", metric_name="y", value=1.0)
        insert(connection, "metrics", timestamp=1.0, metric_type="x", metric_name="y", value=1.0, tags="[1]")
    (folder / "strategies.json").write_text("[")
    store = open_store()
    report = import_legacy(folder, store)
    assert report.counts["checkpoints"] == 2
    assert report.counts["samples"] == 5
    assert report.counts["predictions"] == 3
    assert sum(report.not_understood.values()) == 8
    assert report.not_understood["checkpoints: unknown LifecycleState"] == 1
    assert any("extra" in note for note in report.notes)
    assert store.get_mitigation_history()[0].metadata == {"legacy": {"cost": 3.5}}


def test_a_folder_that_is_made_to_do_harm(open_store: OpenStore, folder: Path, tmp_path: Path) -> None:
    bomb = base64.b64encode(zlib.compress(b'"' + b" " * (64 << 20) + b'"')).decode()
    with closing(sqlite3.connect(folder / "monitor.db", isolation_level=None)) as connection:
        insert(connection, "checkpoints", timestamp=1.0, state="READY", arguments=bomb)
        insert(connection, "checkpoints", timestamp=1.0, state="READY", arguments="[" * 100_000)
        insert(connection, "checkpoints", timestamp=1.0, state="READY", hardware_state="[" * 900 + "]" * 900)
        connection.execute("DROP TABLE learning_data")
        endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x AS timestamp FROM n"
        connection.execute(f"CREATE VIEW learning_data AS {endless}")
        connection.execute("DROP TABLE happy_paths")
        connection.execute("CREATE VIRTUAL TABLE happy_paths USING fts4(path_id, name, checkpoints)")
        insert(connection, "happy_paths", path_id="p", name="n", checkpoints="[]")
    (tmp_path / "secret.json").write_text('{"stolen": {"type": "x"}}')
    (folder / "plugins.json").unlink()
    (folder / "plugins.json").symlink_to(tmp_path / "secret.json")
    (folder / "strategies.json").unlink()
    os.mkfifo(folder / "strategies.json")
    store = open_store()
    report = import_legacy(folder, store)
    assert report.counts["checkpoints"] == 2
    assert "learning_data" not in report.counts
    assert "happy_paths" not in report.counts
    assert store.load_plugins() == {}
    assert store.load_strategies() == {}
    assert report.not_understood["checkpoints: a value is cut off or too large"] == 1


def test_a_damaged_database_gives_what_can_be_read(open_store: OpenStore, folder: Path) -> None:
    with closing(sqlite3.connect(folder / "monitor.db", isolation_level=None)) as connection:
        connection.execute("BEGIN")
        for number in range(3000):
            insert(connection, "metrics", timestamp=float(number), metric_type="x", metric_name="y", value=1.0)
        connection.execute("COMMIT")
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'predictions'").fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    data = bytearray((folder / "monitor.db").read_bytes())
    data[(page - 1) * page_bytes : page * page_bytes] = b"\xff" * page_bytes
    (folder / "monitor.db").write_bytes(data)
    store = open_store()
    report = import_legacy(folder, store)
    assert report.counts["samples"] == 3005
    assert "predictions" not in report.counts
    assert any("predictions ended early" in note for note in report.notes)


def test_what_is_no_folder_of_the_earlier_design(open_store: OpenStore, tmp_path: Path, folder: Path) -> None:
    store = open_store()
    store.flush_all()
    assert is_legacy(folder)
    (folder / "monitor.db").unlink()
    assert is_legacy(folder)  # its JSON files
    assert not is_legacy(tmp_path / "store")
    assert not is_legacy(tmp_path / "nowhere")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "monitor.db").write_bytes(b"SQLite format 3\0" + os.urandom(5000))
    assert not is_legacy(tmp_path / "junk")
    with pytest.raises(ArchiveError, match="earlier design"):
        import_legacy(tmp_path / "store", store)
