from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_monitor.collectors.server_facts import arguments_of, read_server_facts


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("--model m --port=8000 --enforce-eager", {"model": "m", "port": "8000", "enforce-eager": True}),
        ("m --dtype bfloat16", {"model": "m", "dtype": "bfloat16"}),
        ("--lora-modules a=1 b=2 --x", {"lora-modules": ["a=1", "b=2"], "x": True}),
        ("--middleware a --middleware b", {"middleware": ["a", "b"]}),
        ("--a= --b", {"a": "", "b": True}),
        ("", {}),
    ],
)
def test_a_command_line_by_option(command: str, expected: dict[str, Any]) -> None:
    assert arguments_of(command.split()) == expected


def test_of_a_process_only_what_steers_it_is_read(tmp_path: Path) -> None:
    program = tmp_path / "api_server.py"
    program.write_text("print('up', flush=True); input()")
    process = subprocess.Popen(
        [sys.executable, str(program), "--model", "m", "--port", "8123"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "DATABASE_PASSWORD": "no", "PATH": "/usr/bin"},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        facts = read_server_facts(process.pid)
    finally:
        process.communicate(b"\n")
    assert facts.arguments == {"model": "m", "port": "8123"}
    assert facts.environment == {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    assert facts.hardware_state["memory_total_bytes"] > 0
    assert facts.hardware_state["cpus_allowed"] > 0


def test_a_process_that_is_gone() -> None:
    facts = read_server_facts(1 << 22)
    assert (facts.arguments, facts.environment, facts.hardware_state["cpus_allowed"]) == ({}, {}, None)
