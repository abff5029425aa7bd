"""Records of every kind: filters, order, limits, durability, changes, and what several processes do to them.

Over 500 lines: every kind goes through the same stories.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from vllm_monitor.clock import ManualClock
from vllm_monitor.errors import (
    ConfigurationError,
    RecordNotFoundError,
    StoreDamagedError,
    StoreUnavailableError,
    ValueNotStorableError,
)
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.persistence import pending as pending_module
from vllm_monitor.persistence.pending import Batch, Pending, RareItem
from vllm_monitor.persistence.records.rare_kinds import ATTEMPTS, EVENTS
from vllm_monitor.persistence.records.rare_rows import RareKind
from vllm_monitor.records import (
    Alert,
    AlertState,
    AttemptStatus,
    Event,
    FailurePattern,
    FailurePrediction,
    GuardrailPolicy,
    LifecycleState,
    MitigationAttempt,
    MitigationOutcome,
    PredictionConfidence,
    PredictionOutcome,
    RequestSummary,
    StateCheckpoint,
)

OpenStore = Callable[..., PersistenceManager]


def checkpoint(timestamp: float, state: LifecycleState = LifecycleState.READY, **fields: Any) -> StateCheckpoint:
    return StateCheckpoint(timestamp, state, None, None, {}, {}, {}, **fields)


def attempt(attempt_id: str, timestamp: float = 1.0, **fields: Any) -> MitigationAttempt:
    fields.setdefault("strategy_name", "restart")
    return MitigationAttempt(
        attempt_id=attempt_id,
        timestamp=timestamp,
        initial_state=LifecycleState.DEGRADED,
        initial_metrics={},
        error_context=["e"],
        interventions_executed=[],
        **fields,
    )


def prediction(prediction_id: str, timestamp: float = 1.0, **fields: Any) -> FailurePrediction:
    fields = {"failure_type": "engine_stall", "probability": 0.75, **fields}
    return FailurePrediction(
        prediction_id=prediction_id,
        timestamp=timestamp,
        current_state=LifecycleState.SERVING,
        predicted_failure_state=None,
        time_to_failure=60.0,
        confidence=PredictionConfidence.HIGH,
        contributing_factors=["queue"],
        recommended_mitigations=["restart"],
        **fields,
    )


@contextmanager
def nothing_commits(store: PersistenceManager) -> Iterator[None]:
    """Hold the write lock of the database, so that everything saved stays pending."""
    with closing(sqlite3.connect(store.config.db_path, isolation_level=None)) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        yield


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


# --- what is pending replaces what is stored --------------------------------------------------------------------


def test_a_pending_version_hides_the_stored_one(open_store: OpenStore) -> None:
    store = open_store(durable_timeout_seconds=30)
    for number in range(6):
        store.save_mitigation_attempt(attempt(f"a{number}", float(number), outcome=MitigationOutcome.SUCCESS))

    def ids(**filters: Any) -> list[str]:
        return [one.attempt_id for one in store.get_mitigation_history(**filters)]

    def look() -> tuple[list[str], ...]:
        return (
            ids(outcome="SUCCESS"),
            ids(outcome=MitigationOutcome.SUCCESS, limit=2),
            ids(outcome="failure"),
            ids(limit=3),
            ids(strategy_name="restart"),
            ids(target="t"),
        )

    with nothing_commits(store):
        store.enqueue_mitigation_attempt(attempt("a5", 5.0, outcome=MitigationOutcome.FAILURE))
        store.enqueue_mitigation_attempt(attempt("a4", 4.0, strategy_name="drain", outcome=MitigationOutcome.SUCCESS))
        store.enqueue_mitigation_attempt(attempt("a3", 0.5, outcome=MitigationOutcome.SUCCESS, target="t"))
        pending = look()
    assert pending == (
        ["a4", "a2", "a1", "a3", "a0"],
        ["a4", "a2"],
        ["a5"],
        ["a5", "a4", "a2"],
        ["a5", "a2", "a1", "a3", "a0"],
        ["a3"],
    )
    assert store.flush_all()
    assert look() == pending


def test_equal_times_keep_their_order_when_one_is_saved_again(open_store: OpenStore) -> None:
    store = open_store(durable_timeout_seconds=30)
    for name in ("a", "b", "c"):
        store.save_mitigation_attempt(attempt(name))
    with nothing_commits(store):
        store.enqueue_mitigation_attempt(attempt("d"))
        store.enqueue_mitigation_attempt(attempt("a", outcome=MitigationOutcome.SUCCESS))
        pending = [one.attempt_id for one in store.get_mitigation_history()]
    assert store.flush_all()
    assert pending == [one.attempt_id for one in store.get_mitigation_history()] == ["d", "c", "b", "a"]


def test_a_durable_intent_is_no_durable_outcome(open_store: OpenStore) -> None:
    store = open_store(durable_timeout_seconds=30)
    assert store.save_mitigation_attempt(attempt("a", status=AttemptStatus.INTENDED)) == "a"
    assert store.is_durable("a")
    with nothing_commits(store):
        store.enqueue_mitigation_attempt(attempt("a", status=AttemptStatus.ACTING))
        store.enqueue_mitigation_attempt(attempt("a", outcome=MitigationOutcome.SUCCESS))
        assert not store.is_durable("a")
        (pending,) = store.get_mitigation_history()
        assert (pending.status, pending.outcome) == (AttemptStatus.SETTLED, MitigationOutcome.SUCCESS)
    assert store.flush_all()
    assert store.is_durable("a")
    assert store.get_mitigation_history(status="settled") == [pending]
    assert store.get_mitigation_history(status=AttemptStatus.INTENDED) == []


def test_memory_is_bounded_by_bytes_and_a_dropped_outcome_is_never_called_durable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pending_module, "MOST_RARE_BYTES", 100_000)
    pending = Pending()

    def queue(record: Event | MitigationAttempt) -> RareItem:
        kind: RareKind[Any] = EVENTS if isinstance(record, Event) else ATTEMPTS
        row = kind.to_row(record)
        item = RareItem(kind, row[kind.id_field], row)
        pending.add_rare(item)
        return item

    queue(attempt("a", status=AttemptStatus.INTENDED))
    pending.settle(pending.take(1), Batch())
    assert pending.is_durable("a")
    outcome = queue(attempt("a", outcome=MitigationOutcome.SUCCESS))
    large = [queue(Event(timestamp=n, event_type="x", message="m" * 30_000, event_id=f"{n}")) for n in range(5)]
    assert [item.record_id for item in pending.snapshot().rare] == ["2", "3", "4"]
    assert pending.dropped["records"] == 3
    assert outcome.first_attempt.result(0) is large[1].first_attempt.result(0) is False
    queue(Event(timestamp=9, event_type="x", message="m" * 300_000, event_id="huge"))
    assert [item.record_id for item in pending.snapshot().rare] == ["huge"]
    pending.settle(pending.take(1), Batch())
    assert pending.is_durable("huge")
    assert not pending.is_durable("a")
    assert len(pending) == 0


# --- changes ----------------------------------------------------------------------------------------------------


def test_outcomes_of_predictions(open_store: OpenStore) -> None:
    clock = ManualClock(100.0)
    store = open_store(clock=clock, durable_timeout_seconds=30)
    store.save_prediction(prediction("p", metadata={"odd": {1: 2}}), checkpoint_id="c")
    store.save_prediction(prediction("q", 2.0), actual_outcome="did_not_happen")
    (before,) = store.get_predictions(outcome="OPEN")
    assert (before.prediction_id, before.checkpoint_id, before.resolved_at) == ("p", "c", None)
    with nothing_commits(store):
        store.enqueue_prediction_outcome("p", "HAPPENED")
        assert store.get_predictions(outcome="open") == []
        (pending,) = store.get_predictions(outcome=PredictionOutcome.HAPPENED)
        assert (pending.resolved_at, pending.metadata) == (100.0, {"odd": {1: 2}})
    clock.advance(1)
    store.update_prediction_outcome("p", PredictionOutcome.MITIGATED)
    by_id = {one.prediction_id: (one.outcome, one.resolved_at) for one in store.get_predictions("engine_stall")}
    assert by_id == {"p": (PredictionOutcome.MITIGATED, 101.0), "q": (PredictionOutcome.DID_NOT_HAPPEN, 100.0)}
    store.update_prediction_outcome("p", "open")
    assert store.get_predictions(outcome="open") == [before]
    with pytest.raises(RecordNotFoundError, match="'r'"):
        store.update_prediction_outcome("r", "happened")
    with pytest.raises(ConfigurationError) as caught:
        store.update_prediction_outcome("p", "perhaps")
    assert "DID_NOT_HAPPEN" in caught.value.hint


def test_an_outcome_may_say_when_it_was_known(open_store: OpenStore) -> None:
    store = open_store(clock=ManualClock(100.0))
    for name in ("p", "q", "r"):
        store.save_prediction(prediction(name, metadata={"odd": {1: 2}}))
    store.update_prediction_outcome("p", "happened", resolved_at=90.0)
    store.enqueue_prediction_outcome("q", "censored", resolved_at=91.0)
    store.update_prediction_outcome("r", "open", resolved_at=92.0)
    by_id = {one.prediction_id: (one.outcome.value, one.resolved_at) for one in store.get_predictions()}
    assert by_id == {"p": ("happened", 90.0), "q": ("censored", 91.0), "r": ("open", None)}


def test_the_outcome_of_a_prediction_in_hand_is_queued_without_reading(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(clock=ManualClock(100.0), durable_timeout_seconds=30)
    mine = prediction("p", metadata={"odd": {1: 2}})
    corrected = prediction("corrected")
    for one in (mine, corrected):
        store.save_prediction(one, checkpoint_id="c")
    store.update_prediction_outcome("corrected", "mitigated")
    with monkeypatch.context() as patch:
        patch.setattr(store, "_look", None)  # whoever reads fails
        store.enqueue_prediction_outcome("p", "happened", resolved_at=90.0, prediction=mine)
        store.enqueue_prediction_outcome("corrected", "happened", prediction=corrected)
        store.enqueue_prediction_outcome("new", "censored", prediction=prediction("new"))
    for _ in range(2):
        by_id = {one.prediction_id: one for one in store.get_predictions()}
        assert {name: (one.outcome.value, one.resolved_at) for name, one in by_id.items()} == {
            "p": ("happened", 90.0),
            "corrected": ("mitigated", 100.0),
            "new": ("censored", 100.0),
        }
        assert (by_id["p"].checkpoint_id, by_id["p"].metadata) == ("c", {"odd": {1: 2}}), "all else stays as stored"
        store.flush_all()


def test_an_outcome_of_an_odd_id_and_odd_fields(open_store: OpenStore) -> None:
    store = open_store()
    odd = prediction("json:\0\ud800", outcome="unsure", probability=10**30)
    record_id = store.save_prediction(odd)
    assert record_id == odd.prediction_id
    assert store.is_durable(record_id)
    store.update_prediction_outcome(record_id, "happened")
    (found,) = store.get_predictions()
    assert (found.outcome, found.probability) == (PredictionOutcome.HAPPENED, 10**30)


def test_a_store_that_cannot_be_read_cannot_say_whether_an_id_is_known(open_store: OpenStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = open_store(storage_dir=tmp_path / "file" / "store")
    with pytest.raises(StoreUnavailableError):
        store.update_prediction_outcome("p", "happened")
    store.save_prediction(prediction("p"))
    store.update_prediction_outcome("p", "happened")
    assert [one.outcome for one in store.get_predictions()] == [PredictionOutcome.HAPPENED]


def test_a_happy_path_saved_again_keeps_its_counts(open_store: OpenStore) -> None:
    clock = ManualClock(10.0)
    store = open_store(clock=clock, durable_timeout_seconds=30)
    secret = {"api_key": "xyzzy"}
    steps = [
        StateCheckpoint(1.0, LifecycleState.LOADING_MODEL, None, None, secret, {"HF_TOKEN": "xyzzy"}, {}),
        checkpoint(2.0, LifecycleState.READY),
    ]
    guardrails: list[str | GuardrailPolicy] = [GuardrailPolicy("kv", "", "kv_cache_usage > 0.9"), "queue"]
    assert store.save_happy_path("p", "start", steps, {"ttft": {"mean": 0.1}}, guardrails) == "p"
    store.save_happy_path("empty", "nothing", [], {}, [], metadata={"a": 1}, target="t")
    clock.advance(5)
    store.update_happy_path_stats("p", True)
    with nothing_commits(store):
        store.enqueue_happy_path_stats("p", False)
        store.enqueue_happy_path_stats("p", True)
        store.enqueue_happy_path("p", "better start", steps, {"ttft": {"mean": 0.2}}, [])
        store.enqueue_happy_path_stats("p", True)
        (pending,) = store.get_happy_paths(start_state="LOADING_MODEL")
    assert (pending.name, pending.guardrails, pending.metrics_profile) == ("better start", [], {"ttft": {"mean": 0.2}})
    assert (pending.success_count, pending.failure_count) == (3, 1)
    assert (pending.timestamp, pending.updated_at) == (10.0, 15.0)
    assert store.flush_all()
    assert store.get_happy_paths(end_state=LifecycleState.READY) == [pending]
    assert "xyzzy" not in repr(pending)
    assert b"xyzzy" not in store.config.db_path.read_bytes()
    assert [path.path_id for path in store.get_happy_paths()] == ["empty", "p"]
    assert store.get_happy_paths(start_state="ready") == []
    assert store.get_happy_paths(target="t")[0].metadata == {"a": 1}
    with pytest.raises(RecordNotFoundError):
        store.update_happy_path_stats("q", True)


COUNTER = """
import sys
from pathlib import Path
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager

with PersistenceManager(PersistenceConfig(storage_dir=Path(sys.argv[1]), durable_timeout_seconds=30)) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(100):
        store.update_happy_path_stats("p", number % 4 != 0)
"""


def test_counts_of_two_processes_and_of_who_saves_again_add_up(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store(durable_timeout_seconds=30)
    store.save_happy_path("p", "start", [], {}, [])
    command = [sys.executable, "-c", COUNTER, str(tmp_path / "store")]
    counters = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for counter in counters:
        assert counter.stdout is not None
        assert counter.stdout.readline() == "ready\n"
    for counter in counters:
        assert counter.stdin is not None
        counter.stdin.write("go\n")
        counter.stdin.flush()
    for number in range(20):
        store.save_happy_path("p", f"name {number}", [], {}, [])
    for counter in counters:
        counter.communicate(timeout=60)
        assert counter.returncode == 0
    (path,) = store.get_happy_paths()
    assert (path.name, path.success_count, path.failure_count) == ("name 19", 150, 50)


# --- the other kinds --------------------------------------------------------------------------------------------


def test_filters_of_every_kind(open_store: OpenStore) -> None:
    store = open_store()
    for number in range(4):
        even = number % 2 == 0
        where: dict[str, Any] = {"timestamp": float(number), "target": "t" if even else "u"}
        store.save_alert(Alert(name=f"n{number // 2}", state=AlertState.FIRING, alert_id=f"{number}", **where))
        store.save_failure_pattern(FailurePattern(failure_type="leak" if even else "stall", **where))
        store.save_learning_data("q" if even else "bandit", {"s": number}, "act", 0.5, **where)
        store.save_request_summary(RequestSummary(request_id=f"{number}", **where))
        store.save_prediction(prediction(f"{number}", failure_type="leak" if even else "stall", **where))
    store.save_alert(Alert(timestamp=3.0, name="n1", state=AlertState.RESOLVED, alert_id="3", target="u"))

    def alerts(*positional: Any, **named: Any) -> list[str | None]:
        return [one.alert_id for one in store.get_alerts(*positional, **named)]

    assert alerts() == ["3", "2", "1", "0"]
    assert alerts("n1") == ["3", "2"]
    assert alerts(state="FIRING", limit=2) == ["2", "1"]
    assert alerts(None, AlertState.RESOLVED) == ["3"]
    assert alerts(start_time=1, end_time=2, target="t") == ["2"]
    assert [one.timestamp for one in store.get_failure_patterns("leak")] == [2.0, 0.0]
    assert [one.timestamp for one in store.get_failure_patterns(target="u", limit=1)] == [3.0]
    assert [one["state_context"] for one in store.get_learning_data("q", end_time=1)] == [{"s": 0}]
    assert [one["timestamp"] for one in store.get_learning_data(target="u")] == [3.0, 1.0]
    assert [one.request_id for one in store.get_requests(1, 3, 2)] == ["3", "2"]
    assert [one.request_id for one in store.get_requests(target="t")] == ["2", "0"]
    assert [one.prediction_id for one in store.get_predictions("stall", 0, 2)] == ["1"]
    counts = store.get_statistics()["counts"]
    assert {name: counts[name] for name in ("alerts", "failure_patterns", "requests", "learning_data")} == {
        "alerts": 4,
        "failure_patterns": 4,
        "requests": 4,
        "learning_data": 4,
    }


def test_what_get_learning_data_returns(open_store: OpenStore) -> None:
    store = open_store(clock=ManualClock(7.0))
    record_id = store.save_learning_data("q", {"state": "degraded"}, "restart", -0.5, {"episode": 3})
    assert store.get_learning_data() == [
        {
            "learning_id": record_id,
            "timestamp": 7.0,
            "learning_type": "q",
            "state_context": {"state": "degraded"},
            "action_taken": "restart",
            "reward": -0.5,
            "metadata": {"episode": 3},
            "target": "",
        }
    ]


def test_request_summaries_are_bounded_and_never_push_out_a_rare_record(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending_module, "MOST_REQUESTS", 50)
    store = open_store(durable_timeout_seconds=30)
    with nothing_commits(store):
        store.enqueue_event(Event(timestamp=0, event_type="in flight", message=""))
        for number in range(1200):  # a thousand may be in flight
            store.save_request_summary(RequestSummary(timestamp=number, request_id=f"{number}", metadata={"o": object}))
        dropped = store.health().dropped["requests"]
        assert dropped >= 150
        found = store.get_requests(limit=None)
        assert len(found) == 1200 - dropped
        assert found[0].request_id == "1199"
        assert store.health().not_durable == 1
    assert store.flush_all()
    assert len(store.get_requests(limit=None)) == 1200 - dropped
    assert len(store.get_events()) == 1
    assert not store.is_durable("1199")


def test_only_certain_secrets_leave_metadata_and_messages(open_store: OpenStore) -> None:
    store = open_store()
    ordinary = {"key": "value", "token": "eos", "note": "Basic settings: key=3, password: none"}
    token = "hf_" + "a1" * 17
    store.save_checkpoint(
        StateCheckpoint(
            1.0,
            LifecycleState.ERROR,
            None,
            None,
            {},
            {},
            {},
            error_context={"line": f"401 for {token}", **ordinary},
            metadata={"url": "redis://user:xyzzy@host/0", **ordinary},
        )
    )
    (found,) = store.get_checkpoints()
    assert found.error_context == {"line": "401 for [redacted]", **ordinary}
    assert found.metadata == {"url": "redis://user:[redacted]@host/0", **ordinary}


def test_async_forms_of_the_other_kinds(open_store: OpenStore) -> None:
    store = open_store()

    async def use() -> None:
        await asyncio.gather(
            store.save_prediction_async(prediction("p")),
            store.save_mitigation_attempt_async(attempt("a")),
            store.save_alert_async(Alert(timestamp=1, name="n", state=AlertState.FIRING, alert_id="l")),
            store.save_failure_pattern_async(FailurePattern(timestamp=1, failure_type="leak", pattern_id="f")),
            store.save_happy_path_async("h", "name", [], {}, []),
            store.save_learning_data_async("q", {}, "act", 1.0),
        )
        assert all(store.is_durable(record_id) for record_id in "palfh")
        await store.update_prediction_outcome_async("p", "happened")
        await store.update_happy_path_stats_async("h", success=True)
        assert [one.outcome for one in await store.get_predictions_async()] == [PredictionOutcome.HAPPENED]
        assert [one.success_count for one in await store.get_happy_paths_async()] == [1]
        assert len(await store.get_learning_data_async("q", limit=5)) == 1
        with pytest.raises(RecordNotFoundError):
            await store.update_happy_path_stats_async("unknown", success=True)

    asyncio.run(use())


def test_a_damaged_happy_path_is_skipped_and_cannot_be_counted(open_store: OpenStore) -> None:
    store = open_store()
    store.save_happy_path("p", "start", [checkpoint(1.0)], {}, [])
    store.close()
    with closing(sqlite3.connect(store.config.db_path, isolation_level=None)) as connection:
        connection.execute("UPDATE happy_paths SET success_count = 1000")
    store = open_store()
    assert store.get_happy_paths() == []
    assert store.health().damaged_rows == 1
    with pytest.raises(StoreDamagedError):
        store.update_happy_path_stats("p", True)
    store.save_happy_path("p", "anew", [], {}, [])
    assert [(path.name, path.success_count) for path in store.get_happy_paths()] == [("anew", 0)]


def test_a_filter_that_can_match_nothing_is_refused(open_store: OpenStore) -> None:
    store = open_store()
    with pytest.raises(ConfigurationError, match="there is no state 'nope'") as refused:
        store.get_checkpoints(state="nope")
    assert "ready" in refused.value.hint
    assert store.get_checkpoints(state="READY") == []
