from __future__ import annotations

import pytest

from vllm_monitor.collectors.server_command import name_for_other, port_of_server_command, role_of_title


@pytest.mark.parametrize(
    ("command", "port"),
    [
        ("vllm serve m", 8000),
        ("/opt/venv/bin/vllm serve m --port 9001", 9001),
        ("/usr/bin/python3.11 /opt/venv/bin/vllm serve m --port=9002", 9002),
        ("python -B -X dev -m vllm.entrypoints.openai.api_server --model m --port 9003", 9003),
        ("python3 -m vllm.entrypoints.cli.main serve m --port 1 --port 9004", 9004),
        ("python3 /src/vllm/entrypoints/openai/api_server.py --host 0.0.0.0", 8000),
        ("/venv/bin/python /venv/bin/vllm-monitor simulate --port 9005", 9005),
        ("vllm serve m --port", 8000),
        ("vllm bench serve", None),
        ("vllm", None),
        ("python -m vllm.entrypoints.cli.main bench", None),
        ("timeout 60 vllm serve m", None),
        ("tail -f vllm serve", None),
        ("python -c vllm serve", None),
        ("python other.py vllm serve", None),
        ("vllm-monitor watch http://x:8000", None),
        ("", None),
    ],
)
def test_only_a_server_itself_is_a_server_command(command: str, port: int | None) -> None:
    assert port_of_server_command(tuple(command.split())) == port


def test_a_shell_that_mentions_a_server_is_none() -> None:
    assert port_of_server_command(("bash", "-c", "vllm serve m")) is None


@pytest.mark.parametrize(
    ("arguments", "kernel_name", "role"),
    [
        (("VLLM::EngineCore_DP0",), "VLLM::EngineCor", "engine"),
        ((), "VLLM::EngineCor", "engine"),
        (("VLLM::Worker_TP3",), "VLLM::Worker_TP", "worker"),
        (("PROD::Worker",), "PROD::Worker", "worker"),
        (("VLLM::APIServer_1",), "VLLM::APIServer", "api"),
        (("VLLM::DPCoordinator",), "VLLM::DPCoordin", None),
        (("python", "-c", "from multiprocessing.resource_tracker import main;main(5)"), "python", "resource_tracker"),
        (("python", "-c", "from multiprocessing.spawn import spawn_main"), "python", None),
        ((), "", None),
    ],
)
def test_roles_from_titles(arguments: tuple[str, ...], kernel_name: str, role: str | None) -> None:
    assert role_of_title(arguments, kernel_name) == role


def test_names_of_others() -> None:
    assert name_for_other(("VLLM::DPCoordinator",), "VLLM::DPCoordin") == "VLLM::DPCoordinator"
    assert name_for_other(("/usr/bin/python3", "-c", "x"), "python3") == "python3"
    assert name_for_other((), "") == "?"
