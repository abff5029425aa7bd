"""Finds the gaps in the scrapes of a target, and why they are there."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from vllm_monitor.persistence import PersistenceManager

__all__ = ["find_gaps"]

GAP_FACTOR = 2.5
LEAST_GAP_SECONDS = 1.5
LATE_SLACK_SECONDS = 2.0
AWAY = "nobody watched"
LATE = "the monitor itself was late"
SILENT = "no page could be read"


def find_gaps(
    store: PersistenceManager,
    targets: Sequence[str],
    start_time: float | None = None,
    end_time: float | None = None,
) -> list[dict[str, Any]]:
    """Gaps between stored pages that are much longer than the usual time between two.

    Args:
        store: Where the pages are.
        targets: Which targets to look at.
        start_time: From this time on.
        end_time: Up to this time.

    Returns:
        One entry per gap: ``target, from, to, seconds, reason``, oldest first per target.
    """
    gaps = []
    for target in targets:
        events = store.get_events("watch_started", start_time, target=target, limit=100_000)
        starts = [event.timestamp for event in events]
        late = store.get_events("monitor_late", start_time, target=target, limit=100_000)
        stored = store.scrape_times(target, start_time, end_time).get("metrics")
        times = [] if stored is None else [at / 1000 for at in stored.tolist()]
        steps = [later - earlier for earlier, later in itertools.pairwise(times)]
        usual = statistics.median(steps) if steps else 0.0
        for earlier, step in zip(times, steps, strict=False):
            later = earlier + step
            # Between two watches there is a gap, however short it is.
            away = step > usual and any(earlier < begun <= later for begun in starts)
            if away or step > max(GAP_FACTOR * usual, LEAST_GAP_SECONDS):
                ours = any(earlier < event.timestamp <= later + LATE_SLACK_SECONDS for event in late)
                gaps.append(
                    {
                        "target": target,
                        "from": round(earlier, 3),
                        "to": round(later, 3),
                        "seconds": round(step, 3),
                        "reason": AWAY if away else LATE if ours else SILENT,
                    }
                )
    return gaps
