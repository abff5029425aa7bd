"""Every call of our part inside a real server fails, one after the other: the server serves, and the loss is told."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.waiting import wait_until

import vllm_env
from vllm_server import VllmServer

FAULTS = Path(__file__).parent / "faults"
BUFFER_STEPS = 128


def points() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("vllmmon_test_faults", FAULTS / "sitecustomize.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, str] = module.POINTS
    return found


class Injected:
    """A server with the part inside, and the file that says what of it fails."""

    def __init__(self, server: VllmServer, folder: Path) -> None:
        self.server = server
        self.spool = folder / "spool"
        self.file = folder / "fault"
        self.met = folder / "fault.met"

    def totals(self) -> dict[str, Any]:
        """The newest line of totals."""
        lines = [line for file in sorted(self.spool.glob("*.spool")) for line in file.read_bytes().splitlines(True)]
        whole = [json.loads(line) for line in lines if line.endswith(b"\n")]
        newest: dict[str, Any] = [line for line in whole if line["kind"] == "totals"][-1]
        return newest

    def fresh_totals(self) -> dict[str, Any]:
        """A line of totals that was written from now on."""
        asked_at = time.time()
        wait_until(lambda: self.totals()["t"] > asked_at, "a new line of totals", 10)
        return self.totals()

    def ask(
        self, path: str = "v1/completions", body: dict[str, Any] | None = None, prompt: str = "so"
    ) -> tuple[int, dict[str, Any]]:
        """Status and answer of a request."""
        if path == "v1/completions":
            body = {"model": self.server.model, "prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True}
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.server.url}/{path}", data, headers)  # noqa: S310  # our http:// URL
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310  # likewise
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)


@pytest.fixture(scope="module")
def injected(
    vllm_environment: vllm_env.VllmEnvironment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Injected]:
    folder = tmp_path_factory.mktemp("faults")
    plugin = vllm_env.ensure_plugin()
    with VllmServer(
        vllm_environment,
        folder / "server.log",
        development_routes=False,
        plugin=plugin,
        variables={
            "PYTHONPATH": f"{FAULTS}{os.pathsep}{plugin}",
            "VLLMMON_TEST_FAULT_FILE": str(folder / "fault"),
            "VLLMMON_ENABLED": "1",
            "VLLMMON_SPOOL_DIR": str(folder / "spool"),
            "VLLMMON_FLUSH_SECONDS": "0.3",
            "VLLMMON_BUFFER_STEPS": str(BUFFER_STEPS),
            "VLLM_PLUGINS": "vllm_monitor,vllm_monitor_levers",
        },
    ) as server:
        found = Injected(server, folder)
        found.ask()
        # So that what is only asked then is asked at all.
        found.ask("v1/vllm-monitor/admission-limit", {"adaptive": True, "limit": 50, "for_seconds": 3000})
        found.ask("v1/vllm-monitor/refuse-prompt", {"prompt_hash": "0" * 64, "for_seconds": 3000})
        yield found


KINDS = {"loop": ("raise", "memory"), "thread": ("memory", "hang")}
CASES = [(point, kind) for point, where in points().items() for kind in KINDS[where]]
CASES += [("spool:Spool.write", "disk"), ("spool:os.write", "disk")]
TRIGGERS: dict[str, tuple[str, dict[str, Any] | None, int]] = {
    "levers:Levers.requests": ("v1/vllm-monitor/requests", None, 500),
    "levers:Levers.status": ("v1/vllm-monitor/status", None, 500),
    "recorder:Recorder.note": ("v1/vllm-monitor/refuse-prompt", {"prompt_hash": "1" * 64}, 200),
}
"""What is only called by a route: the route, and what it answers."""
NEVER_CALLED = ("rejections:Rejections.count",)  # vLLM calls it when it refuses by a limit of its own
NO_FAULT = (*NEVER_CALLED, "levers:Levers.requests", "levers:Levers.status", "spool:os.write")
"""What a route answers, and what waits for the disk, is no fault."""
REQUESTS, TOKENS = 6, 8


@pytest.mark.parametrize(("point", "kind"), CASES, ids=[f"{point}-{kind}" for point, kind in CASES])
def test_a_call_that_fails_costs_no_request(injected: Injected, point: str, kind: str) -> None:
    before = injected.fresh_totals()
    injected.met.unlink(missing_ok=True)
    injected.file.write_text(f"{point} {kind}")
    try:
        for _ in range(REQUESTS):
            assert injected.ask()[0] == 200
        if point in TRIGGERS:
            path, body, expected = TRIGGERS[point]
            assert injected.ask(path, body)[0] == expected
        if point not in NEVER_CALLED:
            wait_until(injected.met.exists, "that it was called", 5)
        assert injected.server.get("/health") == ""
    finally:
        injected.file.unlink()
    after = injected.fresh_totals()
    lost = {name: after[name] - before[name] for name in ("faults", "lost_steps", "lost_lines")}
    missing = REQUESTS * TOKENS - (tokens_of(after) - tokens_of(before))
    print(f"{point} {kind}: {lost}, {missing} tokens not counted")
    assert missing <= 0 or sum(lost.values()) > 0, "what is lost is told"
    assert lost["faults"] > 0 or kind == "hang" or point in NO_FAULT
    assert injected.ask()[0] == 200
    again = injected.fresh_totals()
    assert tokens_of(again) == tokens_of(after) + TOKENS, "it goes on as if nothing had been"


def tokens_of(totals: dict[str, Any]) -> float:
    found: float = totals["engines"]["0"]["counters"]["generation_tokens"]
    return found


def test_what_fails_at_the_start_leaves_a_server_with_the_gate_that_its_operator_put_in(
    vllm_environment: vllm_env.VllmEnvironment, tmp_path: Path
) -> None:
    plugin = vllm_env.ensure_plugin()
    with VllmServer(
        vllm_environment,
        tmp_path / "server.log",
        development_routes=False,
        extra_args=("--middleware", "vllm_monitor_engine.middleware.Gate"),
        plugin=plugin,
        variables={
            "PYTHONPATH": f"{FAULTS}{os.pathsep}{plugin}",
            "VLLMMON_TEST_FAULT_FILE": str(tmp_path / "fault"),
            "VLLMMON_TEST_START_FAULTS": "1",
            "VLLMMON_ENABLED": "1",
            "VLLMMON_SPOOL_DIR": str(tmp_path / "spool"),
            "VLLMMON_REFUSED_PROMPTS": hashlib.sha256(b'"harm"').hexdigest(),
            "VLLM_PLUGINS": "vllm_monitor,vllm_monitor_levers",
        },
    ) as server:
        injected = Injected(server, tmp_path)
        assert injected.ask()[0] == 200
        assert injected.ask(prompt="harm")[0] == 503
        assert injected.ask("v1/vllm-monitor/status")[0] == 503, "there are no levers, and that is said"
        assert "vllm-monitor: cannot record inside this server" in server.log_file.read_text()
        assert not injected.spool.exists()
