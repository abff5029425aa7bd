"""How single requests went, as plain JSON values; never their text.

Those that finished together are one line of columns: the line of a busy server is then made, encoded and written by a
few calls, and what each request alone would cost is paid by whoever reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vllm_monitor_engine.step_columns import StepColumns

__all__ = ["REQUESTS_PER_LINE", "request_columns", "request_lines"]

REQUESTS_PER_LINE = 64
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


def request_columns(columns: StepColumns, iterations: Sequence[Any]) -> dict[str, list[Any]]:
    """The requests that finished with these iterations, as columns of the same length; none when none did.

    Args:
        columns: Reads them.
        iterations: vLLM's ``IterationStats``; when one ended is when its requests did, in Unix seconds.
    """
    requests: list[Any] = []
    ended: list[float | None] = []
    for iteration, finished in zip(iterations, columns.values(iterations, "finished_requests"), strict=True):
        if finished and isinstance(finished, (list, tuple)):
            requests += finished
            ended += columns.aligned((iteration,), "iteration_timestamp") * len(finished)
    if not requests:
        return {}
    figures = {name: columns.aligned(requests, path) for name, path in FIGURES.items()}
    return {
        "id": [str(one or "") for one in columns.values(requests, "request_id")],
        "reason": [_reason(one) for one in columns.values(requests, "finish_reason")],
        "ended": ended,
        **figures,
    }


def request_lines(finished: dict[str, list[Any]], engine: int, now: float) -> Iterator[dict[str, Any]]:
    """The columns as lines.

    Args:
        finished: What :func:`request_columns` gave.
        engine: Index of their engine.
        now: Unix seconds, for versions whose iterations have no timestamp.
    """
    for start in range(0, len(finished.get("id", ())), REQUESTS_PER_LINE):
        part = {name: column[start : start + REQUESTS_PER_LINE] for name, column in finished.items()}
        part["ended"] = [now if at is None else at for at in part["ended"]]
        yield {"kind": "requests", "engine": engine, **part}


def _reason(reason: Any) -> str:
    """Why a request ended, as the server's metrics name it: ``stop``, ``length``, ``abort``, ``error`` ..."""
    if isinstance(reason, str):
        return reason
    return str(getattr(reason, "name", None) or "unknown").lower()
