"""Other versions of vLLM: one server of each, with the part inside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.real_vllm.compatibility import Hooks, check_row, hooks_of, observe, plugin_server
from tests.real_vllm.conftest import ensure_vllm

from vllm_load import LoadGenerator
from vllm_server import VllmServer
from watch_process import WatchProcess

VERSIONS = ("0.27.0", "0.29.0", "0.31.0")
EXPECTED_VALUES = {
    "requests_running",
    "requests_waiting",
    "generation_tokens_total",
    "prompt_tokens_total",
    "generation_tokens_per_second",
    "kv_cache_usage_ratio",
    "time_to_first_token_p50_seconds",
    "inter_token_latency_p50_seconds",
    "e2e_request_latency_p50_seconds",
}

pytestmark = pytest.mark.vllm_versions


@dataclass(frozen=True, slots=True)
class Versioned:
    """A server of one version.

    Args:
        version: Which.
        hooks: What it offers.
        server: The server.
        spool: Where the part inside it writes.
    """

    version: str
    hooks: Hooks
    server: VllmServer
    spool: Path


@pytest.fixture(scope="module", params=VERSIONS)
def versioned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Versioned]:
    folder = tmp_path_factory.mktemp("vllm")
    env = ensure_vllm(request.param)
    hooks = hooks_of(env)
    with plugin_server(env, hooks, folder) as server:
        yield Versioned(request.param, hooks, server, folder / "spool")


def test_other_version_shows_the_same_figures(versioned: Versioned, tmp_path: Path) -> None:
    server = versioned.server
    with (
        LoadGenerator(server.url, server.model, requests_per_second=1.0) as load,
        WatchProcess([server.url, "--no-store"], tmp_path / "errors") as watch,
    ):
        tick = watch.wait_for("all figures", lambda tick: tick.values.keys() >= EXPECTED_VALUES, 60)
        tick = watch.wait_for("15 s more", lambda later: later.data["ts"] >= tick.data["ts"] + 15, 30)
        assert watch.interrupt() == 0
        counts = load.stop()
    assert {seen.condition for seen in watch.ticks} <= {"unknown", "ok", "idle"}
    assert tick.data["version"] == versioned.version
    assert tick.values["generation_tokens_total"] > 0
    assert 0.0 <= tick.values["kv_cache_usage_ratio"] <= 1.0
    assert counts.ok > 0
    assert counts.failed == 0


def test_the_part_inside_does_what_the_table_says(versioned: Versioned, tmp_path: Path) -> None:
    row = observe(versioned.server, versioned.hooks, versioned.spool, tmp_path)
    for name, value in row.items():
        print(f"{name}: {value}")
    check_row(versioned.version, row)
