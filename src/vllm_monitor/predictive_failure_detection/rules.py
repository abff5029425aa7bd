"""Rules beside the hazards, where arithmetic needs no examples.

A figure that rises in a straight line to a limit that is known will be there; a queue that takes longer to drain than a
queue may last will still be there.
"""

from __future__ import annotations

from collections.abc import Mapping

from vllm_monitor.predictive_failure_detection.features import Features

__all__ = ["rule_probability"]

LEAST_NEARNESS = 0.2
"""Four minutes away, see ``Extrapolation``."""
LEAST_MEMORY_GROWTH = 0.14
"""As a logarithm: 15 % in six minutes; a server that warms up stays below."""
LEAST_FDS_LEVEL = 0.5
LEAST_WAITING = 12.0
LEAST_DRAIN_SECONDS = 15.0
"""A queue that lasts for ten seconds is a failure, see ``failures``."""


def rule_probability(failure_type: str, outputs: Mapping[str, float], features: Features) -> float:
    """Probability of a failure by the rule for it; 0 when there is none, or it does not hold.

    Args:
        failure_type: What.
        outputs: Of the detectors, by name.
        features: What they judged by.
    """
    if failure_type == "queue_saturation":
        waiting, finished = (features.value(name, 0.0) for name in ("requests_waiting", "requests_finished_per_second"))
        drains = waiting / max(finished, 0.1) >= LEAST_DRAIN_SECONDS
        return 0.7 if waiting >= LEAST_WAITING and drains else 0.0
    if failure_type == "memory_exhaustion":
        near, holds = outputs["memory_near_20s"], outputs["memory_grown"] >= LEAST_MEMORY_GROWTH
    elif failure_type == "fd_exhaustion":
        near, holds = outputs["fds_near_20s"], outputs["fds_level"] >= LEAST_FDS_LEVEL
    else:
        return 0.0
    return 0.65 + 0.3 * near if holds and near >= LEAST_NEARNESS else 0.0
