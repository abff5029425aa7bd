"""The guardrails of the package on recordings of real failures: each fires, and on a healthy server none."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.core.recordings import DATA

from vllm_monitor.collectors import read_recording
from vllm_monitor.core import replay_ticks
from vllm_monitor.guardrails import Guardrails, builtin_policies
from vllm_monitor.records import AlertState, Severity

FIRES = {
    "engine_sigstop_s0": "engine_stall",
    "worker_sigstop_s0": "engine_stall",
    "engine_sigkill_s0": "engine_dead",
    "worker_sigkill_s0": "worker_dead",
    "api_sigstop_s0": "api_frozen",
    "kv_exhaust_s0": "kv_cache_exhausted",
    "overload_s0": "saturated",
    "overload_limit_s7": "admission_rejections",
    "mem_leak_s0": "memory_growth",
    "sigterm_restart_s0": "server_stopped",
    "startup_failure_s0": "engine_dead",
    "client_abort_s0": "clients_disconnect",
    "bad_requests_s0": "client_errors",
    "healthy_s1": "host_starvation",
    "cpu_starve_s0": "host_starvation",
}
INFORMATION_ONLY = {"client_abort_s0", "bad_requests_s0", "healthy_s1", "cpu_starve_s0"}


def fired(path: Path) -> dict[str, Severity]:
    found: dict[str, Severity] = {}
    for tick in replay_ticks(read_recording(path)):
        found.update({alert.name: alert.severity for alert in tick.alerts if alert.state is AlertState.FIRING})
    return found


def test_every_one_is_understood_and_has_a_runbook() -> None:
    guardrails = Guardrails()
    assert [one.problem for one in guardrails.all()] == [""] * len(builtin_policies())
    for one in guardrails.all():
        assert len(one.policy.metadata["runbook"].split()) > 8
        assert set(one.policy.metadata.get("inhibited_by", ())) <= {other.policy.name for other in guardrails.all()}
    assert 20 <= len(guardrails.all()) <= 30


@pytest.mark.parametrize("name", [name for name in FIRES if (DATA / f"{name}.jsonl.gz").exists()])
def test_on_the_recordings_of_the_repository(name: str) -> None:
    assert FIRES[name] in fired(DATA / f"{name}.jsonl.gz")


@pytest.mark.parametrize("name", FIRES)
def test_on_recordings_of_real_failures(shared_dir: Path, name: str) -> None:
    found = fired(shared_dir / "recordings" / f"{name}.jsonl.gz")
    assert FIRES[name] in found
    if name in INFORMATION_ONLY:
        assert set(found.values()) == {Severity.INFO}


def test_a_healthy_server_raises_none(shared_dir: Path) -> None:
    assert fired(shared_dir / "recordings" / "healthy_s0.jsonl.gz") == {}


def test_objectives_are_those_of_the_site() -> None:
    conditions = {one.name: one.condition for one in builtin_policies(ttft_objective_seconds=0.75)}
    assert "time_to_first_token_p95_seconds > 0.75" in conditions["ttft_over_objective"]
