"""Refused requests: counted, whoever refused them, and cheap when there are thousands."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.engine.test_recorder import Clock, make, told

from vllm_monitor_engine.middleware import Gate, GateState
from vllm_monitor_engine.rejections import MOST_REASONS, Rejections


async def _serve(*_: Any) -> None:
    return


def knock(gate: Gate, times: int) -> list[int]:
    """The statuses that so many requests are answered with."""
    statuses: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}"}

    async def story() -> None:
        for _ in range(times):
            await gate({"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}, receive, send)

    asyncio.run(story())
    return statuses


def test_what_gate_and_vllm_refuse_is_in_the_totals(tmp_path: Path) -> None:
    state = GateState()
    rejections = Rejections(lambda: state.refused)
    recorder = make(tmp_path, Clock(), rejections=rejections)
    state.limit = 0
    assert knock(Gate(_serve, state), 5) == [503] * 5
    for _ in range(3):
        rejections.count("max_num_queued_reqs")
    recorder.turn()
    (line,) = told(tmp_path, "totals")
    assert line["rejected"] == {"gate_limit": 5, "gate_client_limit": 0, "gate_prompt": 0, "max_num_queued_reqs": 3}


def test_thousands_a_second_are_one_line(tmp_path: Path) -> None:
    recorder = make(tmp_path, Clock())
    for _ in range(50_000):
        recorder.rejections.count("max_num_queued_tokens")
    recorder.turn()
    (file,) = tmp_path.glob("*.spool")
    assert len(file.read_text().splitlines()) == 2, "the header, and one of totals"
    assert told(tmp_path, "totals")[0]["rejected"] == {"max_num_queued_tokens": 50_000}


def test_reasons_are_few_and_short() -> None:
    rejections = Rejections()
    for number in range(1_000):
        rejections.count(f"{number:04d}" * 30)
    rejections.count(None)
    counts = rejections.as_json()
    assert len(counts) == MOST_REASONS + 1
    assert max(map(len, counts)) == 80
    assert (sum(counts.values()), counts["other"]) == (1_001, 1_001 - MOST_REASONS)
