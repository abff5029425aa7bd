"""The check before a start, on a real vLLM: its environment, its port, and what is left when its server is killed."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from tests.doctor.subjects import Only, levels, make_subject, run_check, the_only
from tests.waiting import wait_until

import vllm_env
from vllm_monitor.doctor import Installation, Level, apply_fixes, look_into
from vllm_server import VllmServer


@pytest.fixture(scope="module")
def installation(vllm_environment: vllm_env.VllmEnvironment) -> Installation:
    return look_into(vllm_environment.python, vllm_env.server_environment(vllm_environment))


def test_the_environment_is_known_without_an_import(
    vllm_environment: vllm_env.VllmEnvironment, installation: Installation
) -> None:
    assert installation.failure == ""
    assert installation.version == vllm_environment.version
    assert installation.is_cpu_build
    assert {"VLLM_PLUGINS", "VLLM_CPU_KVCACHE_SPACE"} <= (installation.known_variables or frozenset())
    variables = vllm_env.server_environment(vllm_environment, development_routes=True)
    subject = make_subject(
        " ".join(vllm_env.server_command(vllm_environment, 8000)),
        {name: value for name, value in variables.items() if name.startswith(("VLLM_", "HF_"))},
        installation,
    )
    for check in ("versions", "variables", "model", "memory"):
        assert levels(run_check(check, subject)) == [Level.OK]
    assert {one.level for one in run_check("flags", subject)} == {Level.NOTE, Level.OK}


def test_a_server_at_work_and_what_its_death_leaves(vllm_environment: vllm_env.VllmEnvironment, tmp_path: Path) -> None:
    with VllmServer(vllm_environment, tmp_path / "server.log") as server:
        left = [server.process(role).pid for role in ("engine", "worker")]
        subject = make_subject(pids=[server.pid, *left], port=server.port)
        assert the_only(run_check("port", subject), Level.PROBLEM).data["pids"] == [server.pid]
        assert levels(run_check("orphans", subject)) == [Level.OK]
        os.kill(server.pid, signal.SIGKILL)
        subject = replace(subject, machine=replace(subject.machine, processes=lambda: Only(left)))
        wait_until(lambda: Level.PROBLEM in levels(run_check("orphans", subject)), "its engine is an orphan")
        found = run_check("orphans", subject)
        assert {one["pid"] for one in the_only(found, Level.PROBLEM).data["processes"]} == set(left)
        ((_, result),) = apply_fixes(found)
        assert result.done
        assert levels(run_check("orphans", subject)) == [Level.OK]
