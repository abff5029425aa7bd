"""How single requests went, as plain JSON values; never their text.

Those that finished together are one line of columns: the line of a busy server is then made, encoded and written by a
few calls, and what each request alone would cost is paid by whoever reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vllm_monitor_engine.step_columns import ColumnReader, figures_of

__all__ = ["REQUEST_PATHS", "finished_columns", "request_lines"]

REQUESTS_PER_LINE = 64
MOST_TEXT = 200
"""Of an id, which is the client's to choose."""
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
REQUEST_PATHS = {"id": "request_id", "reason": "finish_reason", **FIGURES}


def finished_columns(reader: ColumnReader, finished: Sequence[Any], ended: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """The requests that finished with some iterations, as columns of the same length; none when none did.

    Args:
        reader: Reads :data:`REQUEST_PATHS`.
        finished: Of each iteration, vLLM's list of ``FinishedRequestStats``.
        ended: Of each iteration, when it, and so its requests, ended, in Unix seconds.
    """
    requests: list[Any] = []
    times: list[Any] = []
    for found, at in zip(finished, ended, strict=True):
        if found and isinstance(found, (list, tuple)):
            requests += found
            times += [at] * len(found)
    if not requests:
        return {}
    columns = reader.read(requests)
    return {
        "id": [str(one or "")[:MOST_TEXT] for one in columns["id"]],
        "reason": [_reason(one)[:MOST_TEXT] for one in columns["reason"]],
        "ended": figures_of(times),
        **{name: figures_of(columns[name]) for name in FIGURES},
    }


def request_lines(finished: Mapping[str, Sequence[Any]], engine: int, now: float) -> Iterator[dict[str, Any]]:
    """The columns as lines.

    Args:
        finished: What :func:`finished_columns` gave.
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
