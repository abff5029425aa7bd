"""Every feature of the persistence layer, end to end. Run it twice: the second run shows what the first one left.

    python examples/persistence_example.py [FOLDER]

FOLDER (default ./persistence_example_data) is kept; delete it to begin anew.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from array import array
from pathlib import Path

import numpy as np

from vllm_monitor import VLLMMonitor
from vllm_monitor.errors import RecordNotFoundError, StaleRevisionError
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager, StorageBackend, check_store
from vllm_monitor.records import (
    Alert,
    AlertState,
    AttemptStatus,
    Event,
    FailurePattern,
    FailurePrediction,
    GuardrailPolicy,
    Layout,
    LifecycleState,
    MetricKind,
    MitigationAttempt,
    MitigationOutcome,
    PluginRecord,
    PredictionConfidence,
    PredictionOutcome,
    RequestSummary,
    Series,
    StateCheckpoint,
    StateTransition,
    StrategyRecord,
)

TARGET = "http://127.0.0.1:8000"
PAGE = Layout(
    [
        Series("vllm:num_requests_running", (("engine", "0"),), MetricKind.GAUGE),
        Series("vllm:generation_tokens_total", (("engine", "0"),), MetricKind.COUNTER),
        *(
            Series("vllm:time_to_first_token_seconds_bucket", (("engine", "0"), ("le", bound)), MetricKind.HISTOGRAM)
            for bound in ("0.1", "0.5", "1.0", "+Inf")
        ),
    ]
)


def title(text: str) -> None:
    print(f"\n== {text}")


def show_restored(store: PersistenceManager) -> int:
    """What an earlier run left; the number of earlier runs."""
    runs = store.get_events(event_type="example_run", limit=None)
    title("Restored from earlier runs" if runs else "The store is new: run this again to see it restored")
    if not runs:
        return 0
    counts = store.get_statistics()["counts"]
    print("   records:", ", ".join(f"{number} {kind}" for kind, number in counts.items() if number))
    last = store.get_checkpoints(limit=1)[0]
    print(f"   last state: {last.state} at {time.ctime(last.timestamp)}")
    print("   guardrails:", [policy.name for policy in store.load_guardrails()])
    print("   plugins:", {name: plugin.version for name, plugin in store.load_plugins().items()})
    print("   strategies:", {name: record.success_rate for name, record in store.load_strategies().items()})
    (path,) = store.get_happy_paths(start_state=LifecycleState.READY)
    print(f"   happy path {path.name}: {path.success_count} good, {path.failure_count} bad")
    table, about = store.load_model("restart-or-wait")
    print(f"   model: version of run {about['run']}, {len(table['q'])} entries, weights {table['weights'].tolist()}")
    return len(runs)


def save_samples(store: PersistenceManager, start: float) -> None:
    """Whole scrapes, single samples, and questions about them."""
    title("Samples")
    for second in range(600):
        done = float(second * 3)
        values = [second % 7, done * 40, done * 0.5, done * 0.8, done * 0.9, done]
        store.save_scrape(PAGE, array("d", values), timestamp=start + second, target=TARGET)
    store.save_metric(
        "custom", "example_odd_values", math.nan, {"kind": "nan"}, {"note": "kept as it is"}, target=TARGET
    )
    store.save_metric("custom", "example_odd_values", math.inf, {"kind": "infinite"}, target=TARGET)

    def ask(name: str, **more: object) -> str:
        found = store.query_range(name, target=TARGET, start_time=start, step_seconds=60, **more)  # type: ignore[arg-type]  # shown in one line
        return " ".join(f"{value:.3g}" for value in found[0].values.tolist())

    print("   running, mean of each minute:  ", ask("vllm:num_requests_running", aggregation="avg"))
    print("   tokens per second, each minute:", ask("vllm:generation_tokens_total", aggregation="rate"))
    bucket = "vllm:time_to_first_token_seconds_bucket"
    print("   p95 of time to first token:    ", ask(bucket, aggregation="quantile", quantile=0.95))
    print("   newest of all:", len(store.latest(target=TARGET)), "series, from memory")
    for sample in store.get_metrics(metric_type="custom", metric_name="example_odd_values", limit=2):
        print("  ", sample["value"], sample["tags"], sample["metadata"])


def save_lifecycle(store: PersistenceManager, now: float) -> list[StateCheckpoint]:
    """Checkpoints, durable when the call returns; secrets are taken out."""
    title("Checkpoints")
    checkpoints = []
    before: LifecycleState | None = None
    for state, transition in (
        (LifecycleState.READY, StateTransition.STARTUP),
        (LifecycleState.SERVING, StateTransition.OPERATION),
    ):
        checkpoint = StateCheckpoint(
            timestamp=now,
            state=state,
            previous_state=before,
            transition_type=transition,
            arguments={"model": "example", "api_key": "sk-secret"},
            environment={"HF_TOKEN": "hf_secret", "CUDA_VISIBLE_DEVICES": "0"},
            hardware_state={"gpus": 1},
            metrics={"kv_cache_usage_ratio": 0.2},
            target=TARGET,
        )
        store.save_checkpoint(checkpoint)
        checkpoints.append(checkpoint)
        before = state
    newest = store.get_checkpoints(state=LifecycleState.SERVING, limit=1)[0]
    print("  ", newest.state, "after", newest.previous_state, newest.arguments, newest.environment)
    return checkpoints


def predict_and_act(store: PersistenceManager, now: float) -> None:
    """A prediction with its outcome; an attempt whose intent is stored before the action."""
    title("Predictions, attempts, alerts")
    prediction_id = store.save_prediction(
        FailurePrediction(
            prediction_id=f"example-{now}",
            timestamp=now,
            current_state=LifecycleState.SERVING,
            predicted_failure_state=LifecycleState.ERROR,
            failure_type="kv_exhaustion",
            time_to_failure=120.0,
            probability=0.8,
            confidence=PredictionConfidence.HIGH,
            contributing_factors=["the KV cache fills by 1 % a second"],
            recommended_mitigations=["limit_admission"],
            target=TARGET,
        )
    )
    intent = MitigationAttempt(
        attempt_id=f"attempt-{now}",
        timestamp=now,
        initial_state=LifecycleState.SERVING,
        initial_metrics={"kv_cache_usage_ratio": 0.9},
        error_context=["kv_exhaustion predicted"],
        strategy_name="limit_admission",
        interventions_executed=[],
        prediction_id=prediction_id,
        status=AttemptStatus.INTENDED,
        target=TARGET,
    )
    store.save_mitigation_attempt(intent)
    print("   intent durable:", store.is_durable(intent.attempt_id))
    settled = MitigationAttempt(
        attempt_id=intent.attempt_id,
        timestamp=now,
        initial_state=intent.initial_state,
        initial_metrics=intent.initial_metrics,
        error_context=intent.error_context,
        strategy_name=intent.strategy_name,
        interventions_executed=["admission limit 20"],
        execution_time=0.4,
        outcome=MitigationOutcome.SUCCESS,
        final_state=LifecycleState.SERVING,
        prediction_id=prediction_id,
        reward=1.0,
        target=TARGET,
    )
    store.save_mitigation_attempt(settled)
    store.update_prediction_outcome(prediction_id, PredictionOutcome.MITIGATED)
    (prediction,) = store.get_predictions(failure_type="kv_exhaustion", limit=1)
    (attempt,) = store.get_mitigation_history(strategy_name="limit_admission", limit=1)
    print("   prediction:", prediction.outcome, "- attempt:", attempt.status, attempt.outcome)
    try:
        store.update_prediction_outcome("never made", PredictionOutcome.HAPPENED)
    except RecordNotFoundError as error:
        print("   an unknown prediction:", error)
    alert = Alert(timestamp=now, name="kv-nearly-full", state=AlertState.FIRING, target=TARGET, alert_id=f"alert-{now}")
    store.save_alert(alert)
    print("   alerts firing:", len(store.get_alerts(state=AlertState.FIRING)))
    store.save_learning_data("q_learning", {"state": "serving"}, "limit_admission", 1.0)
    print("   experiences:", len(store.get_learning_data("q_learning")))
    store.save_request_summary(RequestSummary(timestamp=now, model="example", output_tokens=17, target=TARGET))
    pattern = FailurePattern(
        timestamp=now,
        failure_type="kv_exhaustion",
        description="preemptions while the queue grows",
        metric_conditions={"preemptions_per_second": "> 0.5"},
        occurrence_count=len(store.get_mitigation_history(limit=None)),
        last_seen=now,
        pattern_id="example-pattern",
    )
    store.save_failure_pattern(pattern)
    print("   pattern seen:", store.get_failure_patterns()[0].occurrence_count, "times")
    scores = store.get_prediction_scores("kv_exhaustion")
    print("   predictions by day and outcome:", [(score.outcome.value, score.predictions) for score in scores])


def configure(store: PersistenceManager, run: int) -> None:
    """Guardrails, plugins, strategies: documents that merge entry by entry and notice stale changes."""
    title("Guardrails, plugins, strategies")
    policy = GuardrailPolicy("kv-nearly-full", "keep some KV cache free", "kv_cache_usage_ratio > 0.95")
    store.save_guardrails([policy, GuardrailPolicy(f"from-run-{run}", "one for each run", "requests_waiting > 100")])
    source = "def collect():\n    return {'example_gpu_fans': 2}\n"
    store.save_plugins([PluginRecord("fans", "collector", source, version=f"1.{run}", config={"every_seconds": 10})])
    store.save_strategies([StrategyRecord("limit_admission", success_rate=1.0, attempt_count=run + 1)])
    print("  ", [known.name for known in store.load_guardrails()], store.load_plugins()["fans"].sha256[:12], "...")
    try:
        store.save_guardrails([policy], expected_revisions={policy.name: -1})
    except StaleRevisionError as error:
        print("   a stale change:", error)


def edit_by_hand(store: PersistenceManager) -> None:
    """What a person changes in the file counts at once; a mistake in it changes nothing."""
    title("A guardrail edited by hand")
    file = store.config.storage_dir / store.config.guardrails_file
    document = json.loads(file.read_text(encoding="utf-8"))
    document["entries"]["kv-nearly-full"]["severity"] = "critical"
    file.write_text(json.dumps(document, indent=2), encoding="utf-8")
    print("   severity now:", {one.name: one.severity for one in store.load_guardrails()}["kv-nearly-full"])
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2])
    print("   cut off in the middle, still in force:", len(store.load_guardrails()), "guardrails")
    print("   health:", store.health().message)
    file.write_bytes(good)


def remember(store: PersistenceManager, checkpoints: list[StateCheckpoint], run: int) -> None:
    """A happy path and a model."""
    title("Happy paths and models")
    profile = {"vllm:time_to_first_token_seconds": {"mean": 0.2, "std": 0.05, "p95": 0.31}}
    store.save_happy_path("example-start", "a start that went well", checkpoints, profile, ["kv-nearly-full"])
    store.update_happy_path_stats("example-start", success=True)
    q_table = {("serving", "limit_admission"): 0.9, ("serving", "no_op"): 0.1}
    store.save_model("restart-or-wait", {"q": q_table, "weights": np.array([0.1, 0.2 + run])}, {"run": run})
    model, about = store.load_model("restart-or-wait")
    print("   versions kept:", len(store.list_models()), "- weights", model["weights"], model["weights"].dtype, about)


def survive_kill(config: PersistenceConfig) -> None:
    """Another process saves an event and is killed with -9 the moment the call has returned."""
    title("kill -9")
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from vllm_monitor.persistence import PersistenceConfig, PersistenceManager\n"
        "from vllm_monitor.records import Event\n"
        "store = PersistenceManager(PersistenceConfig(storage_dir=Path(sys.argv[1])))\n"
        "store.save_event(Event(timestamp=float(sys.argv[2]), event_type='example_last_words', message='saved'))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    now = time.time()
    ended = subprocess.run([sys.executable, "-c", program, str(config.storage_dir), str(now)], check=False)
    with PersistenceManager(config) as store:
        found = store.get_events(event_type="example_last_words", start_time=now)
    print(f"   ended with {signal.Signals(-ended.returncode).name}; its last words were stored: {len(found) == 1}")


def maintain(store: PersistenceManager) -> None:
    """What runs by itself every few seconds, here on demand."""
    title("Sealing, roll-ups, retention")
    before = store.get_statistics()
    print("  ", store.run_maintenance(seal_all=True))
    after = store.get_statistics()
    print(
        f"   {before['counts']['metrics']} samples before, {after['counts']['metrics']} after; {after['bytes']} bytes"
    )
    print("   deleted because of age:", store.cleanup_old_data())


def carry_away(config: PersistenceConfig, folder: Path) -> None:
    """Export, import twice, another backend, check."""
    title("Export and import")
    archive, copy = folder / "archive", folder / "copy"
    for leftover in (archive, copy, folder / "in_one_file", folder / "parquet"):
        shutil.rmtree(leftover, ignore_errors=True)
    with PersistenceManager(config) as store:
        store.export_data(archive)
    counts = []
    copied = PersistenceConfig(storage_dir=copy, backend=StorageBackend.JSON)
    for _ in range(2):
        with PersistenceManager(copied) as store:
            store.import_data(archive)
            found = store.get_statistics()["counts"]
            counts.append({kind: found[kind] for kind in found if kind not in ("metric_rows", "blocks", "rollups")})
    print("   importing twice is importing once:", counts[0] == counts[1])
    report = check_store(config)
    print("   check:", "ok" if report.ok else report.findings)
    in_one_file = PersistenceConfig(storage_dir=folder / "in_one_file", backend=StorageBackend.SQLITE)
    with PersistenceManager(in_one_file) as store:
        store.import_data(archive)
        print("   moved to SQLite alone:", sorted(path.name for path in in_one_file.storage_dir.glob("*.db")))
        if importlib.util.find_spec("pyarrow"):
            print("   Parquet:", store.export_parquet(folder / "parquet").counts["samples"], "samples")


def damage(folder: Path) -> None:
    """A damaged store is set aside, a new one is begun, and what can be read comes back."""
    title("Damage")
    broken = PersistenceConfig(storage_dir=folder / "broken")
    shutil.rmtree(broken.storage_dir, ignore_errors=True)
    with PersistenceManager(broken) as store:
        store.import_data(folder / "archive")
        before = store.get_statistics()["counts"]["checkpoints"]
    with broken.db_path.open("r+b") as file:
        file.seek(broken.db_path.stat().st_size // 2)
        file.write(b"garbage" * 1000)
    print("   check names", len(check_store(broken).findings), "damaged places")
    with broken.db_path.open("r+b") as file:
        file.write(b"garbage in the header")
    with PersistenceManager(broken, synchronous=True) as store:
        print("  ", store.health().message)
        after = store.get_statistics()["counts"]["checkpoints"]
        print(f"   checkpoints: {before} before, {after} brought back")


async def without_blocking(config: PersistenceConfig) -> None:
    """From asyncio: rare records without blocking the loop."""
    title("asyncio")
    with PersistenceManager(config) as store:
        event_id = await store.save_event_async(
            Event(timestamp=time.time(), event_type="example_async", message="hello")
        )
        print("   durable:", store.is_durable(event_id))


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "persistence_example_data")
    config = PersistenceConfig(storage_dir=folder / "store")
    now = time.time()
    with PersistenceManager(config) as store:
        run = show_restored(store)
        save_samples(store, start=math.floor(now / 60) * 60.0 - 600.0)
        checkpoints = save_lifecycle(store, now)
        predict_and_act(store, now)
        configure(store, run)
        edit_by_hand(store)
        remember(store, checkpoints, run)
        maintain(store)
        store.save_event(Event(timestamp=now, event_type="example_run", message=f"run {run} of the example"))
    survive_kill(config)
    asyncio.run(without_blocking(config))
    carry_away(config, folder)
    damage(folder)
    with VLLMMonitor(persistence_config=config) as monitor:
        title("A monitor on the same store")
        print("   degraded:", monitor.get_persistence_stats()["degraded"])


if __name__ == "__main__":
    main()
