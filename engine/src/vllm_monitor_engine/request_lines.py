"""How single requests went, as plain JSON values; never their text."""

from __future__ import annotations

from typing import Any

from vllm_monitor_engine.engine_totals import number_of, reason_of

__all__ = ["request_line"]

FIGURES = {
    "prompt_tokens": "num_prompt_tokens",
    "output_tokens": "num_generation_tokens",
    "cached_tokens": "num_cached_tokens",
    "queue_seconds": "queued_time",
    "prefill_seconds": "prefill_time",
    "decode_seconds": "decode_time",
    "inter_token_seconds": "mean_time_per_output_token",
    "duration_seconds": "e2e_latency",
    "preemptions": "num_preemptions",
    "max_tokens": "max_tokens_param",
}


def request_line(request: Any, iteration: Any, engine: int, now: float) -> dict[str, Any]:
    """One finished request.

    Its time to first token is what is left of its duration without the time between first and last token; so it has in
    it what the front end itself needed, as its client saw it.

    Args:
        request: vLLM's ``FinishedRequestStats``.
        iteration: The ``IterationStats`` that it came with, whose timestamp is when it ended.
        engine: Index of its engine.
        now: Unix seconds, for versions whose iterations have no timestamp.
    """
    figures: dict[str, Any] = {name: number_of(request, attribute) for name, attribute in FIGURES.items()}
    if figures["cached_tokens"] is not None and figures["cached_tokens"] < 0:
        figures["cached_tokens"] = None
    if (figures["output_tokens"] or 0) < 2:
        figures["inter_token_seconds"] = None
    duration, decode = figures["duration_seconds"], figures["decode_seconds"]
    ended = number_of(iteration, "iteration_timestamp") or now
    return {
        **figures,
        "id": str(getattr(request, "request_id", None) or ""),
        "engine": engine,
        "reason": reason_of(request),
        "arrived": ended - (duration or 0.0),
        "time_to_first_token_seconds": None if duration is None or decode is None else max(0.0, duration - decode),
    }
