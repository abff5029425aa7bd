from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from vllm_monitor.picture.snapshot import Snapshot
from vllm_monitor.records import Condition, GpuInfo, HostPressure, LifecycleState, ProcessInfo
from vllm_monitor.terminal import LiveView

T0 = 1_772_589_000.0

VALUES = {
    "requests_running": 12.0,
    "requests_waiting": 3.0,
    "kv_cache_usage_ratio": 0.437,
    "generation_tokens_per_second": 412.0,
    "time_to_first_token_p50_seconds": 0.123,
    "time_to_first_token_p95_seconds": 0.456,
    "inter_token_latency_p50_seconds": 0.021,
    "inter_token_latency_p95_seconds": 0.044,
    "progress_age_seconds": 0.4,
    "health_latency_seconds": 0.002,
    "established_connections": 14.0,
}


class WrittenText(io.BytesIO):
    """A file that is no terminal, with an encoding."""


def make_console(width: int = 80, height: int = 24, encoding: str = "utf-8", *, terminal: bool = False) -> Console:
    file = io.TextIOWrapper(WrittenText(), encoding=encoding, errors="strict", write_through=True)
    return Console(
        file=file, width=width, height=height, force_terminal=terminal, color_system="truecolor" if terminal else None
    )


def written(console: Console) -> str:
    """Everything that went to a console made here."""
    file = console.file
    assert isinstance(file, io.TextIOWrapper)
    buffer = file.buffer
    assert isinstance(buffer, WrittenText)
    return buffer.getvalue().decode(file.encoding)


@pytest.fixture
def start_time() -> float:
    return T0


@pytest.fixture
def picture() -> Callable[..., Snapshot]:
    """Makes a snapshot, ``tick`` seconds after the start."""

    def make(tick: float = 0.0, **changes: Any) -> Snapshot:
        fields: dict[str, Any] = {
            "target": "http://127.0.0.1:8000",
            "timestamp": T0 + tick,
            "state": LifecycleState.SERVING,
            "condition": Condition.OK,
            "reason": "12 requests in flight, tokens are flowing.",
            "condition_since": T0,
            "values": VALUES,
            "processes": (
                ProcessInfo(4000, "api", "sleeping", 10.0 + tick * 0.31, 1_200_000_000, threads=40, fds=61),
                ProcessInfo(4001, "engine", "sleeping", 99.0, 2_400_000_000, threads=30),
            ),
            "host": HostPressure(cpu_percent=34.2, load1=3.1, memory_available_bytes=12 * 2**30),
            "version": "0.32.0",
            "models": ("tiny-llama",),
            "scraped_at": T0 + tick - 0.2,
            "health_status": 200,
        }
        return Snapshot(**(fields | changes))

    return make


@pytest.fixture
def gpu() -> GpuInfo:
    return GpuInfo(0, "NVIDIA H100", 40 * 2**30, 80 * 2**30, 0.97, 412.0, 64.0, throttle_reasons=0x4)


@pytest.fixture
def console_of() -> Callable[..., Console]:
    return make_console


@pytest.fixture
def text_of() -> Callable[[Console], str]:
    return written


@pytest.fixture
def lines_of() -> Callable[..., list[str]]:
    """The lines of a view on a screen of a size, as a recording console of that size shows them."""

    def lines(view: LiveView, width: int, height: int) -> list[str]:
        console = Console(
            file=io.StringIO(), record=True, width=width, height=height, force_terminal=True, color_system="truecolor"
        )
        console.print(view.render((width, height)))
        return console.export_text(styles=False).splitlines()

    return lines
