"""docs/prediction_scores.md and the JSON of report say what the program says."""

from __future__ import annotations

import json
from pathlib import Path

from tests.docs.pages import DOCS, code_spans, section, table_rows
from tests.docs.test_cli_page import assert_documented
from tests.report.histories import failed, predicted
from typer.testing import CliRunner

from vllm_monitor.cli.app import app
from vllm_monitor.failures import event_of
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import PredictionOutcome
from vllm_monitor.report import RESOLVED_FOR_CALIBRATION

PAGE = DOCS / "prediction_scores.md"


def test_keys_of_the_report(tmp_path: Path) -> None:
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store:
        store.save_prediction(predicted(1000.0))
        store.save_event(event_of(failed(1100.0)))
    result = CliRunner().invoke(app, ["report", "--json", "--storage-dir", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert_documented(json.loads(result.stdout), "JSON of report")


def test_every_outcome_is_explained() -> None:
    rows = {span for row in table_rows(section(PAGE, "What became of a prediction")) for span in code_spans(row[0])}
    assert rows == set(PredictionOutcome)


def test_from_when_on_a_score_is_calibrated() -> None:
    words = section(PAGE, "What became of a prediction")
    assert f"fewer than {RESOLVED_FOR_CALIBRATION} of them a score is called `uncalibrated`" in " ".join(words.split())
