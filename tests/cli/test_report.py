"""The report as somebody in front of a terminal uses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.running import run
from tests.report.histories import CENSORED, DAY, DID_NOT_HAPPEN, HAPPENED, MITIGATED, OPEN, STALL, failed, predicted
from tests.report.test_pictures import words

from vllm_monitor.clock import SystemClock
from vllm_monitor.failures import event_of
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager

TARGET = "http://gpu1:8000"
HOSTILE = "[red]mine\x1b[31m"


def fill(folder: Path, count: int = 24) -> float:
    """A prediction every two hours, three of four of which come true 90 s later; one on each other outcome."""
    now = SystemClock().now()
    with PersistenceManager(PersistenceConfig(storage_dir=folder)) as store:
        for number in range(count):
            at = now - 7_200.0 * (number + 1)
            store.save_prediction(predicted(at, HAPPENED if number % 4 else DID_NOT_HAPPEN, 0.7, target=TARGET))
            if number % 4:
                store.save_event(event_of(failed(at + 90.0, target=TARGET)))
        for outcome in (MITIGATED, CENSORED, OPEN):
            store.save_prediction(
                predicted(now - 500.0, outcome, name=outcome, kind=HOSTILE, target="http://gpu2:8000")
            )
        store.save_event(event_of(failed(now - 400.0, kind=STALL, target=TARGET)))
    return now


def document(*arguments: str | Path) -> Any:
    return json.loads(run("report", *arguments, "--json").stdout)


def test_tables(tmp_path: Path) -> None:
    fill(tmp_path)
    said = run("report", "--storage-dir", tmp_path).stdout
    # The first table, since its rows are the last to be put in.
    rows = {row[0]: row[1:] for line in reversed(said.splitlines()) if (row := line.split())}
    assert {"kv_exhaustion", "engine_stall", "all"} <= set(rows)
    assert rows["kv_exhaustion"][:6] == ["24", "18", "6", "0", "0", "0"]
    assert rows["all"][:6] == ["27", "18", "6", "1", "1", "1"]
    assert "[red]mine" in said
    assert "\x1b" not in said
    for column in ("mitigated", "censored", "precision", "recall", "Brier", "ECE"):
        assert column in said
    assert "18 of 18" in said
    assert "90 s" in said or "90.0 s" in said
    assert "uncalibrated: " not in said  # over all there are 24
    assert said.count("uncalibrated") == 2  # of the other two types


def test_few_are_called_uncalibrated(tmp_path: Path) -> None:
    fill(tmp_path, 19)
    assert "uncalibrated: 19 predictions are resolved" in run("report", "--storage-dir", tmp_path).stdout


def test_json(tmp_path: Path) -> None:
    now = fill(tmp_path)
    found = document("--storage-dir", tmp_path)
    assert [one["failure_type"] for one in found["types"]] == ["engine_stall", "kv_exhaustion", HOSTILE]
    overall = found["overall"]
    assert (overall["predictions"], overall["happened"], overall["did_not_happen"]) == (27, 18, 6)
    assert (overall["mitigated"], overall["censored"], overall["open"]) == (1, 1, 1)
    assert overall["precision"] == 0.75
    assert overall["recall"] == 18 / 19
    assert overall["lead_seconds"]["median"] == pytest.approx(90.0, abs=0.01)
    assert overall["brier"] == pytest.approx(0.75 * 0.09 + 0.25 * 0.49)
    assert overall["ece"] == pytest.approx(0.05)
    assert found["pictures"] == []
    day = document("--storage-dir", tmp_path, "--last", "1d")
    assert day["start"] == pytest.approx(now - DAY, abs=60)
    assert day["overall"]["predictions"] == 11 + 3
    assert day["days_watched"] < 1.0


def test_filters(tmp_path: Path) -> None:
    fill(tmp_path)
    one = document("--storage-dir", tmp_path, "--target", "gpu2:8000")  # as people write it
    assert (one["target"], one["overall"]["predictions"], one["overall"]["failures"]) == ("http://gpu2:8000", 3, 0)
    kind = document("--storage-dir", tmp_path, "--failure-type", "kv_exhaustion")
    assert [entry["failure_type"] for entry in kind["types"]] == ["kv_exhaustion"]
    said = run("report", "--storage-dir", tmp_path, "--target", "http://nobody").stdout
    assert said == "no prediction and no failure is stored of that server, type and time\n"


def test_pictures(tmp_path: Path) -> None:
    fill(tmp_path / "store")
    folder = tmp_path / "new" / "pictures"
    said = run("report", "--storage-dir", tmp_path / "store", "--pictures", folder).stdout
    for name in ("reliability.svg", "lead_time.svg"):
        assert f"drawn: {folder / name}" in said
        assert words((folder / name).read_text(encoding="utf-8"))
    again = document("--storage-dir", tmp_path / "store", "--pictures", folder)
    assert again["pictures"] == [str(folder / "reliability.svg"), str(folder / "lead_time.svg")]


def test_where_no_picture_can_be_written(tmp_path: Path) -> None:
    fill(tmp_path / "store", 1)
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        done = run("report", "--storage-dir", tmp_path / "store", "--pictures", folder, check=2)
        assert "the pictures cannot be written to" in done.stderr
        assert "--pictures" in done.stderr
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_an_empty_store_and_none(tmp_path: Path) -> None:
    PersistenceManager(PersistenceConfig(storage_dir=tmp_path / "empty")).close()
    where = ("--storage-dir", tmp_path / "empty")
    assert run("report", *where).stdout == "no prediction and no failure is stored\n"
    assert document(*where)["overall"]["brier"] is None
    run("report", *where, "--pictures", tmp_path / "pictures")
    assert "no resolved predictions yet" in (tmp_path / "pictures" / "reliability.svg").read_text(encoding="utf-8")
    assert "there is no store" in run("report", "--storage-dir", tmp_path / "none", check=2).stderr
