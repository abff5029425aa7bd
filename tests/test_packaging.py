from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata, resources
from pathlib import Path

import pytest

import vllm_monitor

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = Path(sysconfig.get_path("scripts"))
HEAVY_MODULES = {"aiohttp", "alembic", "fastapi", "httpx", "pynvml", "rich", "sklearn", "sqlalchemy", "torch", "typer"}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)


def test_one_version_everywhere() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert vllm_monitor.__version__ == project["version"] == metadata.version("vllm-monitor")


def test_type_information_is_shipped() -> None:
    assert resources.files("vllm_monitor").joinpath("py.typed").is_file()


def test_extras_are_there() -> None:
    extras = metadata.metadata("vllm-monitor").get_all("Provides-Extra") or []
    assert set(extras) >= {"all", "bench", "dev", "gpu", "test"}


def test_import_is_light() -> None:
    code = "import json, sys, vllm_monitor; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    result = run(sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr
    loaded = set(json.loads(result.stdout))
    assert "vllm_monitor" in loaded
    assert loaded & HEAVY_MODULES == set()


@pytest.mark.parametrize("command", [[str(SCRIPTS / "vllm-monitor")], [sys.executable, "-m", "vllm_monitor.cli"]])
def test_command_line_introduces_itself(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.returncode == 0, result.stderr
    for name in ("watch", "status", "query", "record", "replay", "stats", "simulate", "demo"):
        assert name in result.stdout
    assert vllm_monitor.__version__ in run(*command, "--version").stdout


@pytest.mark.skipif(not (SCRIPTS / "lint-imports").exists(), reason="import-linter is not installed (extra dev)")
def test_imports_only_go_down() -> None:
    result = run(str(SCRIPTS / "lint-imports"), "--no-cache")
    assert result.returncode == 0, result.stdout
