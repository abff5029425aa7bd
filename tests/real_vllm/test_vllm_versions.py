from __future__ import annotations

from pathlib import Path

import pytest

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


@pytest.mark.vllm_versions
@pytest.mark.parametrize("versioned_server", VERSIONS, indirect=True)
def test_other_version_shows_the_same_figures(
    versioned_server: VllmServer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server = versioned_server
    with (
        LoadGenerator(server.url, server.model, requests_per_second=1.0) as load,
        WatchProcess([server.url, "--no-store"], tmp_path / "errors") as watch,
    ):
        tick = watch.wait_for("all figures", lambda tick: tick.values.keys() >= EXPECTED_VALUES, 60)
        tick = watch.wait_for("15 s more", lambda later: later.data["ts"] >= tick.data["ts"] + 15, 30)
        assert watch.interrupt() == 0
        counts = load.stop()
    assert {seen.condition for seen in watch.ticks} <= {"unknown", "ok", "idle"}
    assert tick.data["version"] == request.node.callspec.params["versioned_server"]
    assert tick.values["generation_tokens_total"] > 0
    assert 0.0 <= tick.values["kv_cache_usage_ratio"] <= 1.0
    assert counts.ok > 0
    assert counts.failed == 0
