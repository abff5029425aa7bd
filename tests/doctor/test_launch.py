"""The command that is about to be run, as operators write it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_monitor.doctor import parse_launch
from vllm_monitor.errors import ConfigurationError


def test_a_command_with_variables_in_front() -> None:
    launch = parse_launch(
        ["env", "VLLM_PLUGINS=a,b", "HF_HUB_OFFLINE=1", "vllm", "serve", "org/model", "-tp", "4", "--port=9000"], {}
    )
    assert launch.variables == {"VLLM_PLUGINS": "a,b", "HF_HUB_OFFLINE": "1"}
    assert (launch.model, launch.port, launch.number("tensor-parallel-size")) == ("org/model", 9000, 4)
    assert not launch.is_module
    assert launch.is_open_to_others


def test_the_module_form_names_its_interpreter() -> None:
    words = [
        sys.executable,
        "-u",
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        "/m",
        "--max_model_len",
        "32k",
    ]
    launch = parse_launch(words, {})
    assert launch.interpreter == Path(sys.executable)
    assert launch.is_module
    assert (launch.model, launch.number("max-model-len"), launch.port) == ("/m", 32_000, 8000)


def test_the_command_of_a_package_names_its_interpreter(tmp_path: Path) -> None:
    script = tmp_path / "vllm"
    script.write_text("#!/opt/venv/bin/python3.12\nimport vllm\n", encoding="utf-8")
    script.chmod(0o755)
    assert parse_launch(["vllm", "serve", "m"], {"PATH": str(tmp_path)}).interpreter == Path("/opt/venv/bin/python3.12")
    assert parse_launch([f"PATH={tmp_path}", "vllm", "serve", "m"], {}).interpreter is not None
    assert parse_launch(["vllm", "serve", "m"], {"PATH": "/nowhere"}).interpreter is None


@pytest.mark.parametrize(
    ("host", "is_open"),
    [("127.0.0.1", False), ("localhost", False), ("::1", False), ("::", True), ("10.1.2.3", True)],
)
def test_who_can_reach_it(host: str, is_open: bool) -> None:
    assert parse_launch(["vllm", "serve", "m", "--host", host], {}).is_open_to_others is is_open
    assert not parse_launch(["vllm", "serve", "m", "--host", host, "--uds", "/run/s"], {}).is_open_to_others


def test_a_command_behind_wrappers() -> None:
    for before in ("nice -n 19", "numactl --interleave=all", "env A=1 nohup", "A=1 timeout 5 taskset -c 0"):
        launch = parse_launch([*before.split(), "vllm", "serve", "m", "--port", "81"], {})
        assert (launch.arguments[0], launch.model, launch.port) == ("vllm", "m", 81)
        assert launch.variables == ({"A": "1"} if "A=1" in before else {})


@pytest.mark.parametrize(
    "words",
    [
        ["ls"],
        ["vllm", "bench"],
        [],
        ["A=1"],
        ["python", "x.py"],
        ["docker", "run", "i", "vllm", "serve"],
        ["nice", "ls"],
    ],
)
def test_a_command_that_starts_no_server_is_refused(words: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="starts no vLLM server"):
        parse_launch(words, {})


def test_a_refusal_shows_no_variable() -> None:
    with pytest.raises(ConfigurationError) as refusal:
        parse_launch(["HF_TOKEN=s3cret", "env", "VLLM_API_KEY=s3cret", "ls"], {})
    assert "s3cret" not in str(refusal.value)


@pytest.mark.parametrize(
    "words",
    [["--api-key=s3cret-1", "vllm", "serve", "m"], ["--api-ke=s3cret-1"], ["https://u:s3cret-1@host"], ["-ps3cret-1"]],
)
def test_a_refusal_shows_no_secret(words: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="starts no vLLM server") as refusal:
        parse_launch(words, {})
    assert "s3cret-1" not in str(refusal.value)


def test_numbers_that_are_none() -> None:
    for text in ("inf", "nan", "1e400", "9" * 5000, "1e308T", "x"):
        launch = parse_launch(["vllm", "serve", "m", "-tp", text, "--port", "9" * 5000], {})
        assert launch.number("tensor-parallel-size") is None
        assert launch.port > 65_535


def test_a_pipe_in_the_place_of_the_command_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "vllm", 0o755)
    assert parse_launch(["vllm", "serve", "m"], {"PATH": str(tmp_path)}).interpreter is None


@given(st.integers(1, 10**6), st.sampled_from(["", "k", "K", "m", "M"]))
def test_numbers_are_read_as_vllm_reads_them(number: int, suffix: str) -> None:
    factor = {"": 1, "k": 1000, "K": 1024, "m": 10**6, "M": 2**20}[suffix]
    launch = parse_launch(["vllm", "serve", "m", "--max-model-len", f"{number}{suffix}"], {})
    assert launch.number("max-model-len") == number * factor


@given(st.lists(st.text(max_size=8), max_size=6))
def test_whatever_follows_is_taken_apart_or_refused(words: list[str]) -> None:
    launch = parse_launch(["vllm", "serve", *words], {})
    assert launch.number("max-model-len") is None or "--max-model-len" in " ".join(words)
