"""How long before a failure it was predicted."""

from __future__ import annotations

from collections.abc import Iterable

from vllm_monitor.failures import Episode
from vllm_monitor.records import FailurePrediction

__all__ = ["lead_seconds"]


def lead_seconds(episode: Episode, predictions: Iterable[FailurePrediction]) -> float | None:
    """Seconds from the first prediction of a failure, within whose horizon it happened; ``None`` when there is none.

    Args:
        episode: The failure.
        predictions: Of its server, in any order; those of other failure types are passed over.
    """
    ahead = (
        episode.happened_at - one.timestamp
        for one in predictions
        if one.failure_type == episode.failure_type and 0 < episode.happened_at - one.timestamp <= one.horizon_seconds
    )
    return max(ahead, default=None)
