from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import vllm_env
from vllm_server import VllmServer

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What lies in this folder needs a real vLLM, unless it says that it needs several."""
    for item in items:
        others = (item.get_closest_marker(name) for name in ("vllm_versions", "vllm_overload"))
        if HERE in item.path.parents and not any(others):
            item.add_marker(pytest.mark.vllm)


def ensure_vllm(version: str) -> vllm_env.VllmEnvironment:
    """An environment with this vLLM. Where there can be none, CI fails and everybody else skips."""
    required = os.environ.get("VLLMMON_REQUIRE_SERVICES") == "1"
    if os.environ.get("VLLMMON_NO_VLLM") == "1" and not required:
        pytest.skip("needs a real vLLM, and VLLMMON_NO_VLLM=1 asks to go without")
    try:
        return vllm_env.ensure(version)
    except vllm_env.EnvironmentSetupError as error:
        if required:
            raise
        pytest.skip(f"needs a real vLLM, which could not be installed here: {error}")


@pytest.fixture(scope="session")
def vllm_environment() -> vllm_env.VllmEnvironment:
    """The default version, installed when it is not there."""
    return ensure_vllm(vllm_env.DEFAULT_VERSION)


@pytest.fixture(scope="module")
def vllm_server(
    vllm_environment: vllm_env.VllmEnvironment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VllmServer]:
    """One real server per module, with the development routes."""
    with VllmServer(vllm_environment, tmp_path_factory.mktemp("vllm") / "server.log") as server:
        yield server
