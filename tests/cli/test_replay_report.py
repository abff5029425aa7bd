"""``replay --report``: what was predicted and found, against what was injected and what clients met."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vllm_monitor.cli.app import app
from vllm_monitor.collectors import read_recording
from vllm_monitor.records import CanaryObservation

DATA = Path(__file__).parents[1] / "data"


def test_the_report_counts_from_the_injection() -> None:
    run = CliRunner().invoke(app, ["replay", str(DATA / "overload_s0.jsonl.gz"), "--report", "--json"])
    assert run.exit_code == 0, run.output
    (found,) = [json.loads(line) for line in run.output.splitlines()]
    assert found["fault"] == "overload_s0"
    assert found["first_client_error_seconds"] == 35.296
    first = found["predictions"][0]
    assert 0 < first["seconds"] < 25
    assert first["seconds_before_client_error"] > 10
    assert first["outcome"] == "happened"
    assert first["contributing_factors"]
    assert {one["failure_type"] for one in found["failures"]} >= {"kv_exhaustion", "latency_breach"}


def test_a_table_ends_the_report_of_several() -> None:
    names = ("engine_sigstop_s0", "overload_s0")
    run = CliRunner().invoke(app, ["replay", *(str(DATA / f"{name}.jsonl.gz") for name in names), "--report"])
    assert run.exit_code == 0, run.output
    words = " ".join(run.output.split())
    assert "happened engine_stall" in words
    assert "first client error at +35.3 s" in words
    assert "┏" in words.split("overload_s0: ", 1)[1], "the table comes after the last recording"


def test_the_truth_is_not_among_the_observations() -> None:
    recording = read_recording(DATA / "overload_s0.jsonl.gz")
    assert recording.truth.requests == 1053
    assert recording.truth.failed_requests == 953
    canaries = [one for one in recording.observations if isinstance(one, CanaryObservation)]
    assert len(canaries) == 53, "our own probes alone, of 1,106 requests"


def test_lines_of_truth_that_make_no_sense_are_passed_over(tmp_path: Path) -> None:
    lines = [
        {"ts": 1.0, "kind": "metrics", "status": 200, "lat": 0.01, "v": {}},
        {"ts": "x", "kind": "event", "event": "inject"},
        {"ts": 2.0, "kind": "event", "event": "inject", "fault": 7},
        {"ts": 3.0, "kind": "client", "tag": "load", "status": 500, "e2e": "long"},
        {"ts": None, "kind": "client", "tag": "load"},
    ]
    path = tmp_path / "odd.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    truth = read_recording(path).truth
    assert (truth.fault, truth.injected_at, truth.first_client_error_at) == ("7", 2.0, 3.0)


@pytest.mark.parametrize("odd", ["[bold]odd", "[link=evil]click", "x\x1b]0;pwned\x07\x1b[31m", "[nowhere"])
def test_the_name_of_a_recording_is_shown_as_text(tmp_path: Path, odd: str) -> None:
    lines = [
        {"kind": "meta", "ts": 1.0, "target": odd, "interval": 1.0, "format": 1},
        {"kind": "event", "ts": 2.0, "event": "inject", "fault": "[/x]"},
        {"kind": "health", "ts": 3.0, "status": 200, "lat": 0.01},
    ]
    path = tmp_path / f"{odd}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = CliRunner().invoke(app, ["replay", str(path), "--report"])
    assert run.exit_code == 0, run.output
    assert "\x1b" not in run.output
    assert odd.split("\x1b", maxsplit=1)[0] + ("" if "\x1b" in odd else ": ") in run.output
