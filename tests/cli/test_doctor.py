"""``vllm-monitor doctor`` as somebody in front of a terminal uses it."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.cli.running import run

from vllm_monitor.clock import SystemClock
from vllm_monitor.doctor import Finding, Fix, FixResult, Level, Subject, examination
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager, StorageBackend
from vllm_monitor.records import LifecycleState, StateCheckpoint

COMMAND = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]


def test_a_command_that_cannot_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        words = [*COMMAND, f"{tmp_path}/absent", "--port", port, "--host", "127.0.0.1", "--api-key", "s3cret-key"]
        done = run("doctor", "--storage-dir", tmp_path / "store", "--", *words, check=1)
        assert f"PROBLEM   port: port {port} of 127.0.0.1 is taken by" in done.stdout
        assert f"PROBLEM   model: there is no model at {tmp_path}/absent" in done.stdout
        assert "do not start yet: " in done.stdout
        document = json.loads(
            run("doctor", "--json", "--storage-dir", tmp_path / "store", "--", *words, check=1).stdout
        )
    assert document["worst"] == "problem"
    assert document["findings"][0]["level"] == "problem"
    assert "s3cret-key" not in json.dumps(document) + done.stdout
    assert not (tmp_path / "store").exists()  # looking makes nothing


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("note", 0), ("unknown", 0), ("warning", 0), ("problem", 1)])
def test_the_exit_code_goes_by_the_worst(level: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = {"one": lambda _: iter([Finding("one", Level(level), "said", "advice")])}
    monkeypatch.setattr(examination, "CHECKS", checks)
    assert json.loads(run("doctor", "--json", check=code).stdout)["worst"] == level
    assert ("do not start yet" in run("doctor", check=code).stdout) is (level == "problem")


class Leftover:
    """A check with something to fix."""

    def __init__(self) -> None:
        self.is_there = True

    def check(self, _: Subject) -> Iterator[Finding]:
        fix = Fix("remove the leftover", self.remove)
        yield (
            Finding("toy", Level.PROBLEM, "a leftover", "Run again with --fix.", fix)
            if self.is_there
            else Finding("toy", Level.OK, "nothing")
        )

    def remove(self) -> FixResult:
        self.is_there = False
        return FixResult(done=True, text="removed it")


def test_a_fix_is_done_only_when_asked_for_and_listed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    leftover = Leftover()
    monkeypatch.setattr(examination, "CHECKS", {"toy": leftover.check})
    document = json.loads(run("doctor", "--json", check=1).stdout)
    assert document["fixes"] == [{"check": "toy", "what": "remove the leftover", "done": None, "result": None}]
    assert leftover.is_there
    lines = run("doctor", "--fix").stdout.splitlines()
    assert lines[0] == "toy: will remove the leftover"
    assert lines[1] == "toy: removed it"
    assert "nothing stands against a start" in lines[3]
    leftover.is_there = True
    done = run("doctor", "--fix", "--json")
    assert json.loads(done.stdout)["fixes"] == [
        {"check": "toy", "what": "remove the leftover", "done": True, "result": "removed it"}
    ]
    assert done.stderr.splitlines()[0] == "toy: will remove the leftover"
    assert "removed" not in run("doctor", "--fix").stdout  # nothing is left to do


def test_what_makes_no_sense() -> None:
    assert "starts no vLLM server" in run("doctor", "--", "ls", "-l", check=2).stderr


def test_python_and_port_can_be_named(tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as listener:
        port = listener.getsockname()[1]
        done = run("doctor", "--python", tmp_path / "absent", "--port", str(port), "--json", check=1)
    findings = json.loads(done.stdout)["findings"]
    assert next(one for one in findings if one["check"] == "port")["data"]["port"] == port
    assert f"{tmp_path}/absent cannot be run" in next(one for one in findings if one["check"] == "versions")["message"]


def folder_of(path: Path) -> dict[str, tuple[int, bytes]]:
    return {one.name: (one.stat().st_mtime_ns, one.read_bytes()) for one in path.iterdir() if one.is_file()}


def harm(database: Path) -> None:
    database.write_bytes(b"\xff" * 8192)


def make_old(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("UPDATE alembic_version SET version_num = '0001'")


def leave(_: Path) -> None:
    """Nothing is wrong with it."""


@pytest.mark.parametrize("backend", StorageBackend)
@pytest.mark.parametrize(
    ("change", "said"), [(harm, "is damaged"), (make_old, "has the schema of an earlier version"), (leave, "")]
)
def test_looking_leaves_the_store_as_it_is(
    tmp_path: Path, backend: StorageBackend, change: Callable[[Path], None], said: str
) -> None:
    config = PersistenceConfig(storage_dir=tmp_path, backend=backend)
    PersistenceManager(config).close()
    change(config.db_path)
    before = folder_of(tmp_path)
    findings = json.loads(run("doctor", "--json", "--storage-dir", tmp_path).stdout)["findings"]
    found = [(one["level"], one["message"], one["advice"]) for one in findings if one["check"] == "history"]
    assert folder_of(tmp_path) == before
    assert [level for level, _, _ in found] == (["unknown"] if said else [])
    if said:
        assert said in found[0][1]
        assert change is make_old or found[0][2] == "Look with vllm-monitor check."


def test_a_folder_that_cannot_be_looked_at_and_a_pipe_for_a_store(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "monitor.db")
    for folder, said in ((f"/{'x' * 5000}", "File name too long"), (tmp_path, "is no file")):
        findings = json.loads(run("doctor", "--json", "--storage-dir", folder).stdout)["findings"]
        (found,) = (one for one in findings if one["check"] == "history")
        assert found["level"] == "unknown"
        assert said in found["message"]
        assert not any("a fault of ours" in one["advice"] for one in findings)


def test_a_store_that_is_open_is_read_beside_its_writer(tmp_path: Path) -> None:
    known = {"arguments": {"model": "org/m"}, "models": ["org/m"]}
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path)) as store:
        store.save_happy_path("1", "good", [], {}, [], metadata={"fingerprint": known})
        words = ["--storage-dir", str(tmp_path), "--json", "--", *COMMAND, "org/m"]
        findings = json.loads(run("doctor", *words, check=1).stdout)["findings"]
    assert [one["data"]["nearest"] for one in findings if one["check"] == "history"] == ["good"]


@pytest.mark.parametrize("backend", StorageBackend)
def test_what_the_store_says_of_the_model(tmp_path: Path, backend: StorageBackend) -> None:
    now = SystemClock().now()
    checkpoint = StateCheckpoint(now, LifecycleState.READY, None, None, {}, {}, {}, target="http://a:8000")
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path, backend=backend)) as store:
        known = {"arguments": {"model": "org/m", "host": "1"}, "models": ["org/m"]}
        store.save_happy_path("1", "good", [checkpoint], {}, [], metadata={"fingerprint": known})
    words = ["--storage-dir", str(tmp_path), "--json", "--", *COMMAND, "org/m", "--host", "127.0.0.1"]
    findings = json.loads(run("doctor", *words, check=1).stdout)["findings"]  # no vLLM is installed here
    (found,) = (one for one in findings if one["check"] == "history")
    assert (found["level"], found["data"]["nearest"]) == ("ok", "good")
