"""Real failures of a real vLLM, replayed: what is said, when, and what is not said."""

from __future__ import annotations

import dataclasses
from itertools import groupby
from pathlib import Path

import pytest
from tests.core.recordings import DATA, Incident, condition_at, incident, replay

from vllm_monitor.collectors import read_recording
from vllm_monitor.core import ReplayReport
from vllm_monitor.records import LogObservation, Observation, ProcessObservation

ILL = {"stalled", "engine_dead", "worker_dead", "api_dead", "api_frozen"}
WELL = {"ok", "idle", "starved"}


def first(report: ReplayReport, conditions: set[str], after: float) -> float:
    return next((e["ts"] - after for e in report.timeline if e["ts"] >= after and e["condition"] in conditions), 1e9)


def assert_quiet_before(report: ReplayReport, found: Incident) -> None:
    assert found.inject_ts is not None
    early = [e for e in report.timeline if e["ts"] < found.inject_ts and e["condition"] in ILL]
    assert not early


def assert_seen_and_over(found: Incident, conditions: set[str], within_seconds: float) -> None:
    report = found.replay()
    assert found.inject_ts is not None
    assert found.end_ts is not None
    assert_quiet_before(report, found)
    assert first(report, conditions, found.inject_ts) <= within_seconds
    assert condition_at(report, found.end_ts - 1) in conditions
    assert condition_at(report, found.end_ts + 5) in WELL


def test_a_frozen_engine_is_a_stall_until_it_goes_on() -> None:
    assert_seen_and_over(incident(DATA, "engine_sigstop_s0"), {"stalled"}, 6)


def test_a_killed_worker_is_a_death() -> None:
    found = incident(DATA, "worker_sigkill_s0")
    report = found.replay()
    assert found.inject_ts is not None
    assert_quiet_before(report, found)
    assert first(report, {"worker_dead"}, found.inject_ts) <= 10
    assert report.timeline[-1]["condition"] == "worker_dead"


def test_overload_is_saturation_and_nothing_worse() -> None:
    found = incident(DATA, "overload_s0")
    report = found.replay()
    assert found.inject_ts is not None
    assert first(report, {"saturated"}, found.inject_ts) <= 20
    assert not {entry["condition"] for entry in report.timeline} & ILL


@pytest.mark.parametrize(
    ("name", "conditions", "within_seconds"),
    [
        ("worker_sigstop_s0", {"stalled"}, 6),
        ("api_sigstop_s0", {"api_frozen"}, 6),
    ],
)
def test_other_stops(shared_dir: Path, name: str, conditions: set[str], within_seconds: float) -> None:
    assert_seen_and_over(incident(shared_dir / "recordings", name), conditions, within_seconds)


def test_a_killed_engine_is_a_death_and_its_restart_a_start(shared_dir: Path) -> None:
    found = incident(shared_dir / "recordings", "engine_sigkill_s0")
    report = found.replay()
    assert found.inject_ts is not None
    assert_quiet_before(report, found)
    assert first(report, {"engine_dead"}, found.inject_ts) <= 10
    conditions = [entry["condition"] for entry in report.timeline]
    after = conditions[conditions.index("engine_dead") :]
    assert after[:2] == ["engine_dead", "starting"]
    assert after[-1] in WELL


def test_a_healthy_server_on_a_pressed_host_is_left_alone(shared_dir: Path) -> None:
    report = incident(shared_dir / "recordings", "healthy_s0").replay()
    conditions = [entry["condition"] for entry in report.timeline]
    assert conditions[0] == "unknown"
    assert set(conditions[1:]) <= {"ok", "idle"}


def test_a_starved_server_is_starved_and_not_stalled(shared_dir: Path) -> None:
    report = incident(shared_dir / "recordings", "healthy_s1").replay()
    conditions = {entry["condition"] for entry in report.timeline}
    assert "starved" in conditions
    assert not conditions & ILL


def test_a_clean_shutdown_is_stopped_then_starting_then_well(shared_dir: Path) -> None:
    report = incident(shared_dir / "recordings", "sigterm_restart_s0").replay()
    conditions = [entry["condition"] for entry in report.timeline]
    assert not set(conditions) & ILL
    assert conditions.index("stopped") < conditions.index("starting")
    assert conditions[-1] in WELL


def test_a_start_that_fails_is_told_by_its_fatal_line(shared_dir: Path) -> None:
    report = incident(shared_dir / "recordings", "startup_failure_s0").replay()
    conditions = [condition for condition, _ in groupby(entry["condition"] for entry in report.timeline)]
    assert conditions == ["unknown", "starting", "engine_dead"]


@pytest.mark.parametrize("name", ["bad_requests_s0", "client_abort_s0", "cpu_starve_s0", "mem_leak_s0"])
def test_other_troubles_are_no_stalls_and_no_deaths(shared_dir: Path, name: str) -> None:
    report = incident(shared_dir / "recordings", name).replay()
    assert not {entry["condition"] for entry in report.timeline} & ILL


@pytest.mark.parametrize("blind_to", ["process state", "processes", "processes and canary"])
def test_a_stall_is_seen_without_looking_at_processes(blind_to: str) -> None:
    """A hung CUDA or NCCL call shows no state T, and a server elsewhere shows no processes at all."""
    found = incident(DATA, "engine_sigstop_s0")
    recording = read_recording(found.path)
    kept: list[Observation] = []
    for observation in recording.observations:
        if isinstance(observation, ProcessObservation):
            if blind_to != "process state":
                continue
            processes = tuple(
                dataclasses.replace(process, state="sleeping") if process.state == "stopped" else process
                for process in observation.processes
            )
            kept.append(dataclasses.replace(observation, processes=processes))
        elif isinstance(observation, LogObservation):
            continue
        elif "canary" not in blind_to or type(observation).__name__ != "CanaryObservation":
            kept.append(observation)
    report = replay(dataclasses.replace(recording, observations=tuple(kept)))
    assert found.inject_ts is not None
    assert found.end_ts is not None
    assert_quiet_before(report, found)
    assert first(report, {"stalled"}, found.inject_ts) <= 15
    assert condition_at(report, found.end_ts + 5) in WELL


@pytest.mark.parametrize("name", ["engine_sigstop_s0", "worker_sigkill_s0", "overload_s0"])
@pytest.mark.parametrize("share", [0.2, 0.45, 0.8])
def test_nothing_said_before_a_moment_depends_on_what_came_after(name: str, share: float) -> None:
    recording = read_recording(DATA / f"{name}.jsonl.gz")
    first_at, last_at = recording.observations[0].timestamp, recording.observations[-1].timestamp
    cut = first_at + share * (last_at - first_at)
    whole = replay(recording)
    known = tuple(o for o in recording.observations if o.timestamp <= cut)
    partial = replay(dataclasses.replace(recording, observations=known))
    before = [entry for entry in whole.timeline if entry["ts"] <= cut]
    assert [entry for entry in partial.timeline if entry["ts"] <= cut] == before


def test_a_replay_is_deterministic() -> None:
    found = incident(DATA, "worker_sigkill_s0")
    assert found.replay().as_json() == found.replay().as_json()
