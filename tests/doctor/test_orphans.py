"""Orphans, with real processes that call themselves as vLLM's do."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.doctor.subjects import Only, levels, make_subject, run_check, the_only
from tests.waiting import wait_until

from vllm_monitor.collectors.proc_files import command_line, read_stat
from vllm_monitor.doctor import Gpu, Gpus, Level, apply_fixes, orphans


def is_alive(pid: int) -> bool:
    stat = read_stat(pid)
    return stat is not None and stat.state != "zombie"


@pytest.fixture
def started() -> Iterator[list[int]]:
    pids: list[int] = []
    yield pids
    for pid in pids:
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


def abandon(started: list[int], title: str, before: str = "") -> int:
    """Start a process whose parent ends at once; it calls itself ``title``."""
    script = f'({before} exec -a "$0" sleep 300) >/dev/null 2>&1 & echo $!'
    said = subprocess.run(
        ["/bin/bash", "-c", script, title], stdout=subprocess.PIPE, text=True, check=True, start_new_session=True
    )
    pid = int(said.stdout)
    started.append(pid)
    wait_until(lambda: (command_line(pid) or ("",))[0] == title, f"{title} has its title")
    return pid


def test_an_orphan_is_found_and_ended(started: list[int]) -> None:
    pid = abandon(started, "VLLM::Worker_TP0")
    gpus = Gpus((Gpu(0, "GPU-0", "H100", 80 << 30, 30 << 30, {pid: 50 << 30}),))
    subject = make_subject(pids=[pid], gpus=gpus)
    found = run_check("orphans", subject)
    problem = the_only(found, Level.PROBLEM)
    assert f"VLLM::Worker_TP0 (pid {pid}" in problem.message
    assert "50 GiB of GPU memory" in problem.message
    assert problem.fix is not None
    assert f"pid {pid}" in problem.fix.what
    assert is_alive(pid)  # nothing happens before it is asked for
    ((_, result),) = apply_fixes(found)
    assert result.done
    assert result.text.startswith("ended VLLM::Worker_TP0")
    assert not is_alive(pid)
    assert levels(run_check("orphans", subject)) == [Level.OK]


def test_one_that_does_not_hear_sigterm_is_killed(started: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "TERM_SECONDS", 0.3)
    deaf, frozen = abandon(started, "VLLM::EngineCore_0", 'trap "" TERM;'), abandon(started, "VLLM::Worker")
    os.kill(frozen, signal.SIGSTOP)
    wait_until(lambda: (stat := read_stat(frozen)) is not None and stat.state == "stopped", "it is frozen")
    ((_, result),) = apply_fixes(run_check("orphans", make_subject(pids=[deaf, frozen])))
    assert result.done
    assert result.text.count("killed") == 2
    assert not is_alive(deaf)
    assert not is_alive(frozen)


def test_what_hangs_on_an_orphan_goes_with_it(
    started: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "(exec -a VLLM::Worker_TP1 sleep 300) & echo $! ; (exec -a other sleep 300) & echo $!; wait"
    before = f"exec -a VLLM::EngineCore bash -c '{script}' >\"$PIDS\";"
    pids_file = tmp_path / "pids"
    monkeypatch.setenv("PIDS", str(pids_file))
    engine = abandon(started, "VLLM::EngineCore", before)
    wait_until(lambda: len(pids_file.read_text().split()) == 2, "its children are there")
    worker, other = map(int, pids_file.read_text().split())
    started += [worker, other]
    wait_until(lambda: (command_line(worker) or ("",))[0] == "VLLM::Worker_TP1", "the worker has its title")
    found = run_check("orphans", make_subject(pids=[engine]))
    assert {one["pid"] for one in the_only(found, Level.PROBLEM).data["processes"]} == {engine, worker}
    apply_fixes(found)
    assert not is_alive(worker)
    assert is_alive(other)


def test_one_with_a_parent_is_nobody_s_orphan(started: list[int]) -> None:
    # Our child, as an engine is the child of a program that uses vLLM as a library.
    child = subprocess.Popen(["/bin/bash", "-c", "exec -a VLLM::Worker sleep 300"])
    try:
        wait_until(lambda: (command_line(child.pid) or ("",))[0] == "VLLM::Worker", "it has its title")
        assert levels(run_check("orphans", make_subject(pids=[child.pid]))) == [Level.OK]
    finally:
        child.kill()
        child.wait()
    stranger = abandon(started, "sleep-of-somebody")
    assert levels(run_check("orphans", make_subject(pids=[stranger]))) == [Level.OK]


@pytest.mark.parametrize("parent", ["vllm-rs", "python3", "VLLM::APIServer", "/usr/bin/python"])
def test_process_1_may_be_the_server_itself(started: list[int], monkeypatch: pytest.MonkeyPatch, parent: str) -> None:
    pid = abandon(started, "VLLM::EngineCore")
    assert levels(run_check("orphans", make_subject(pids=[pid]))) == [Level.PROBLEM]
    monkeypatch.setattr(orphans, "command_line", lambda of: command_line(of) if of == pid else (parent, "x"))
    assert levels(run_check("orphans", make_subject(pids=[pid]))) == [Level.OK]


def test_one_of_the_group_of_process_1_is_its_child(started: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    pid = abandon(started, "VLLM::EngineCore")
    monkeypatch.setattr(os, "getpgid", lambda _: 1)
    assert levels(run_check("orphans", make_subject(pids=[pid]))) == [Level.OK]


class Successor(Only):
    """The same machine a moment later, when another process has the pid."""

    def __init__(self, pid: int) -> None:
        super().__init__([pid])
        self._stats[pid] = replace(self._stats[pid], start_ticks=1)


def test_another_process_of_the_same_pid_is_spared(started: list[int]) -> None:
    pid = abandon(started, "VLLM::Worker")
    subject = make_subject(pids=[pid])
    tables = iter([Only([pid]), Successor(pid)])
    machine = replace(subject.machine, processes=lambda: next(tables))
    ((_, result),) = apply_fixes(run_check("orphans", replace(subject, machine=machine)))
    assert not result.done
    assert "left alone" in result.text
    assert is_alive(pid)


def test_one_that_ended_by_itself_is_no_failure(started: list[int]) -> None:
    pid = abandon(started, "VLLM::Worker")
    found = run_check("orphans", make_subject(pids=[pid]))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: read_stat(pid) is None, "it is gone and reaped")
    ((_, result),) = apply_fixes(found)
    assert result.done
    assert "had ended by itself" in result.text


def test_those_of_other_users_are_told_and_left_alone(started: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    pid = abandon(started, "VLLM::Worker")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    found = run_check("orphans", make_subject(pids=[pid]))
    assert f"of user {os.getuid()}" in the_only(found, Level.PROBLEM).advice
    assert apply_fixes(found) == []
    assert is_alive(pid)
