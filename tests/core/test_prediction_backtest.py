"""What predictions were worth over stored history, and what another setting would have done."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vllm_monitor.cli.app import app
from vllm_monitor.clock import SystemClock
from vllm_monitor.core import TargetPipeline
from vllm_monitor.core.prediction_backtest import backtest_predictions, stored_score
from vllm_monitor.lifecycle_tracker import LifecycleTracker
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.predictive_failure_detection import PredictionSettings, PredictiveFailureDetector
from vllm_monitor.records import HealthObservation, PageObservation
from vllm_monitor.simulator import Fault, FaultKind, ServerSettings, Simulator

TARGET = "http://a:8000"
SECONDS = 700


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a server whose load grew until it was too much, twelve minutes up to now."""
    folder = tmp_path_factory.mktemp("history")
    faults = [
        Fault(FaultKind.OVERLOAD, 300.0 + 20.0 * step, 20.0, rate_multiplier=1.35 ** (step + 1)) for step in range(14)
    ]
    began = math.floor(SystemClock().now()) - SECONDS - 5.0
    simulator = Simulator(ServerSettings(), seed=3, faults=faults, start_time=began)
    with PersistenceManager(PersistenceConfig(storage_dir=folder), synchronous=True) as store:
        pipeline = TargetPipeline(
            TARGET, tracker=LifecycleTracker(store), store=store, predictor=PredictiveFailureDetector()
        )
        for _ in range(SECONDS):
            simulator.advance(1.0)
            layout, values = simulator.scrape()
            at = simulator.unix_time
            page = PageObservation(
                target=TARGET, timestamp=at, latency_seconds=0.002, layout=layout, values=values, status=200
            )
            health = HealthObservation(target=TARGET, timestamp=at, latency_seconds=0.001, status=200)
            pipeline.step(at + 0.01, [page, health])
    return folder


def test_it_would_predict_what_it_did(folder: Path) -> None:
    now = SystemClock().now()
    with PersistenceManager(PersistenceConfig(storage_dir=folder), synchronous=True) as store:
        watched = stored_score(store, TARGET, now - 3600.0, now)
        again = backtest_predictions(store, TARGET, now - 3600.0, now, PredictionSettings())
        quiet = backtest_predictions(store, TARGET, now - 3600.0, now, PredictionSettings(least_probability=0.9999))
        eager = backtest_predictions(store, TARGET, now - 3600.0, now, PredictionSettings(least_probability=0.2))
    assert watched.failures
    assert watched.predictions
    assert watched.leads()
    assert [one.failure_type for one in again.failures] == [one.failure_type for one in watched.failures]
    assert {one.failure_type for one in again.predictions} == {one.failure_type for one in watched.predictions}
    assert abs(again.days - SECONDS / 86_400.0) < 30.0 / 86_400.0
    assert quiet.predictions == ()
    assert len(eager.predictions) > len(again.predictions)


def test_the_command_compares_settings(folder: Path) -> None:
    run = CliRunner().invoke(
        app, ["backtest", "--storage-dir", str(folder), "--since", "1h", "--least-probability", "0.95", "--json"]
    )
    assert run.exit_code == 0, run.output
    lines = [json.loads(line) for line in run.output.splitlines()]
    assert [line["settings"] for line in lines] == ["as watched", "by today's predictor", "least_probability 0.95"]
    assert lines[0]["failures"] == lines[1]["failures"] > 0
    assert lines[0]["failures_predicted"] > 0
    words = CliRunner().invoke(app, ["backtest", "--storage-dir", str(folder), "--since", "1h"])
    assert words.exit_code == 0
    assert f"as watched: {lines[0]['failures_predicted']} of {lines[0]['failures']} failures predicted" in words.output


@pytest.mark.parametrize(
    "wrong",
    [["--least-probability", "1.5"], ["--hold-down", "-1"], ["--daily-budget", "-3"], ["--since", "x"]],
)
def test_settings_that_make_no_sense_are_refused(folder: Path, wrong: list[str]) -> None:
    run = CliRunner().invoke(app, ["backtest", "--storage-dir", str(folder), *wrong])
    assert run.exit_code != 0
