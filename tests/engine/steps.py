"""Steps as vLLM hands them over, made by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


def scheduler(running: int = 1, waiting: int = 0, kv: float = 0.25, **further: Any) -> SimpleNamespace:
    cache = SimpleNamespace(queries=10, hits=4)
    return SimpleNamespace(
        num_running_reqs=running,
        num_waiting_reqs=waiting,
        num_skipped_waiting_reqs=0,
        kv_cache_usage=kv,
        prefix_cache_stats=cache,
        **further,
    )


def iteration(*finished: Any, at: float = 1_000.0, tokens: int = 2, ttft: tuple[float, ...] = ()) -> Any:
    return SimpleNamespace(
        iteration_timestamp=at,
        num_generation_tokens=tokens,
        num_prompt_tokens=7,
        prompt_token_stats=SimpleNamespace(cached_tokens=3),
        num_preempted_reqs=1,
        time_to_first_tokens_iter=list(ttft),
        inter_token_latencies_iter=[0.01, 0.02],
        finished_requests=list(finished),
        num_corrupted_reqs=0,
    )


def finished(name: str = "cmpl-1", duration: float = 2.0, decode: float = 1.5, **further: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{
            "finish_reason": SimpleNamespace(name="STOP"),
            "request_id": name,
            "e2e_latency": duration,
            "num_prompt_tokens": 12,
            "num_preemptions": 0,
            "num_generation_tokens": 31,
            "max_tokens_param": 64,
            "queued_time": 0.1,
            "prefill_time": 0.3,
            "inference_time": 1.8,
            "decode_time": decode,
            "mean_time_per_output_token": 0.05,
            "num_cached_tokens": -1,
            **further,
        }
    )
