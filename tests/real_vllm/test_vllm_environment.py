from __future__ import annotations

import re
import subprocess

import vllm_env
from vllm_monitor import __version__


def run(env: vllm_env.VllmEnvironment, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(env.python), *arguments]
    variables = vllm_env.server_environment(env)
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=300)


def test_we_bring_no_conflict_into_an_environment_with_vllm(vllm_environment: vllm_env.VllmEnvironment) -> None:
    complaints = run(vllm_environment, "-m", "pip", "check").stdout.splitlines()
    ours = [line for line in complaints if not re.search(r"requires torch(audio|vision|codec), which is not", line)]
    assert [line for line in ours if line != "No broken requirements found."] == []


def test_we_run_beside_vllm(vllm_environment: vllm_env.VllmEnvironment) -> None:
    result = run(vllm_environment, "-m", "vllm_monitor.cli", "--version")
    assert result.returncode == 0, result.stderr
    assert __version__ in result.stdout
