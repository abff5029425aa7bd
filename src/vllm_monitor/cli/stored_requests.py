"""The finished requests that a store knows of, summed up for ``vllm-monitor status``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from vllm_monitor.persistence import PersistenceManager
    from vllm_monitor.records import RequestSummary

__all__ = ["MOST_REQUESTS", "requests_as_json", "requests_table"]

LAST_SECONDS = 86_400.0
MOST_REQUESTS = 10_000
"""Of a busy server only the newest are summed up."""


def requests_as_json(store: PersistenceManager, target: str, now: float) -> dict[str, Any] | None:
    """The requests of the last 24 hours that have finished; ``None`` when the store has none.

    Args:
        store: The store.
        target: Their server.
        now: Unix seconds.
    """
    found = store.get_requests(start_time=now - LAST_SECONDS, limit=MOST_REQUESTS, target=target)
    if not found:
        return None
    judged = [one.met_objective for one in found if one.met_objective is not None]
    return {
        "count": len(found),
        "is_all": len(found) < MOST_REQUESTS,
        "since": found[-1].timestamp,
        "prompt_tokens": sum(one.prompt_tokens or 0 for one in found),
        "output_tokens": sum(one.output_tokens or 0 for one in found),
        "cached_tokens": sum(one.cached_tokens or 0 for one in found),
        "preemptions": sum(one.preemptions or 0 for one in found),
        "finish_reasons": dict(Counter(one.finish_reason or "unknown" for one in found).most_common()),
        "met_objective_ratio": sum(judged) / len(judged) if judged else None,
        **_quantiles("time_to_first_token", (one.time_to_first_token_seconds for one in found)),
        **_quantiles("queue", (one.queue_seconds for one in found)),
        **_quantiles("duration", (one.duration_seconds for one in found)),
        "newest": _request_as_json(found[0]),
    }


def _quantiles(name: str, values: Iterable[float | None]) -> dict[str, float | None]:
    known = sorted(value for value in values if value is not None)
    return {
        f"{name}_{label}_seconds": known[min(len(known) - 1, int(len(known) * share))] if known else None
        for label, share in (("p50", 0.5), ("p95", 0.95))
    }


def _request_as_json(request: RequestSummary) -> dict[str, Any]:
    names = ("timestamp", "finish_reason", "prompt_tokens", "output_tokens", "time_to_first_token_seconds")
    fields = {name: getattr(request, name) for name in (*names, "duration_seconds")}
    return {"server_request_id": request.metadata.get("server_request_id"), **fields}


def requests_table(targets: Iterable[dict[str, Any]]) -> Table | None:
    """A row for each target with finished requests; ``None`` when none has any."""
    from rich.markup import escape
    from rich.table import Table

    from vllm_monitor.cli.options import clean
    from vllm_monitor.terminal.format import latency, ratio

    table = Table(title="finished requests of the last 24 h, as told inside the server", title_justify="left")
    for name in ("target", "requests", "tokens in", "tokens out", "TTFT p50 / p95", "queue p50", "good", "ended by"):
        table.add_column(name, overflow="fold")
    for target in targets:
        known = target["requests"]
        if known is None:
            continue
        table.add_row(
            escape(clean(target["target"])),
            f"{known['count']:,}" + ("" if known["is_all"] else " newest"),
            f"{known['prompt_tokens']:,}",
            f"{known['output_tokens']:,}",
            " / ".join(latency(known[f"time_to_first_token_{name}_seconds"]) for name in ("p50", "p95")),
            latency(known["queue_p50_seconds"]),
            ratio(known["met_objective_ratio"]),
            escape(clean(", ".join(f"{reason} {count:,}" for reason, count in known["finish_reasons"].items()))),
        )
    return table if table.row_count else None
