"""How much of a range of time was watched, as far as what is stored tells."""

from __future__ import annotations

from collections.abc import Iterable

from vllm_monitor.persistence import PersistenceManager

__all__ = ["watched_range"]

DAY_SECONDS = 86_400.0


def watched_range(
    store: PersistenceManager,
    target: str | None,
    start: float | None,
    end: float | None,
    *,
    now: float,
    traces: Iterable[float],
) -> tuple[float, float] | None:
    """From the first to the last trace of watching, cut to the range.

    Traces are samples, checkpoints, and what the caller knows of. So a month that was asked for does not count as a
    month when there is only a day of it.

    Args:
        store: The store.
        target: Only this server; ``None`` for all.
        start: Unix seconds; ``None`` is no bound.
        end: Likewise.
        now: Unix seconds; a trace of more than a day later is that of a clock that was wrong, and none.
        traces: Other times, in unix seconds, at which somebody watched.

    Returns:
        Unix seconds of both; ``None`` when nothing was watched in the range.
    """
    times = [time for time in (*traces, *_stored(store, target, start)) if 0.0 < time <= now + DAY_SECONDS]
    if not times:
        return None
    first = max(min(times), start if start is not None else min(times))
    last = min(max(times), end if end is not None else max(times))
    return (first, last) if first <= last else None


def _stored(store: PersistenceManager, target: str | None, start: float | None) -> list[float]:
    if target is None:
        statistics = store.get_statistics()
        return [time for time in (statistics["oldest"], statistics["newest"]) if time is not None]
    # Nobody knows a server's first sample without reading all of them; but watching begins with a checkpoint.
    times = [sample["timestamp"] for sample in store.latest(target=target)]
    times += [one.timestamp for one in store.get_checkpoints(start_time=start, limit=None, target=target)]
    if start is not None:
        times += [one.timestamp for one in store.get_checkpoints(end_time=start, limit=1, target=target)]
    return times
