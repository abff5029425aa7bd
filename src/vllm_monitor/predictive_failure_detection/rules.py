"""Rules beside the hazards, where arithmetic needs no examples.

A figure that rises in a straight line to a limit that is known will be there; a queue that takes longer to drain than a
queue may last will still be there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vllm_monitor.predictive_failure_detection.detectors.extrapolation import LIMITED, limits_of
from vllm_monitor.predictive_failure_detection.features import Features
from vllm_monitor.predictive_failure_detection.hazards import HORIZON_SECONDS

__all__ = ["Rule", "judge_by_rule"]

LEAST_NEARNESS = 0.2
"""Four minutes away, see ``Extrapolation``."""
LEAST_MEMORY_GROWTH = 0.14
"""As a logarithm: 15 % in six minutes; a server that warms up stays below."""
STEEP_MEMORY_GROWTH = 0.3
"""A third: no warm-up does that while it serves."""
LEAST_RISING_SECONDS = 8.0
LEAST_FDS_LEVEL = 0.5
LEAST_WAITING = 12.0
LEAST_DRAIN_SECONDS = 15.0
"""A queue that lasts for ten seconds is a failure, see ``failures``."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a rule says of a failure.

    Args:
        probability: That it happens within the horizon.
        seconds: Until it does, most likely; ``None`` where the rule cannot tell.
        seconds_low: One in ten comes earlier.
        seconds_high: Nine in ten have come by then.
    """

    probability: float
    seconds: float | None = None
    seconds_low: float | None = None
    seconds_high: float | None = None


def _steep_leak(outputs: Mapping[str, float], features: Features) -> Rule | None:
    """Memory that has grown by a third without a fall, and at this rate is at its limit within the horizon."""
    name = "api_resident_memory_bytes"
    rate = max(features.rate(name), features.value("api_resident_memory_growth_bytes_per_second", 0.0))
    left = limits_of(features)[LIMITED.index(name)] - features.value(name)
    steady = features.value("api_resident_memory_growth_seconds", 0.0) >= LEAST_RISING_SECONDS
    if not (steady and rate > 0 and outputs["memory_grown"] >= STEEP_MEMORY_GROWTH and left <= HORIZON_SECONDS * rate):
        return None
    seconds = max(1.0, left / rate)
    return Rule(0.65 + 0.3 * math.exp(-seconds / 150.0), seconds, 0.5 * seconds, min(HORIZON_SECONDS, 2.0 * seconds))


QUEUE_LASTS = Rule(0.7, seconds=8.0, seconds_low=2.0, seconds_high=30.0)
"""It stands already: what is left is the time for which it must stand to count."""


def judge_by_rule(failure_type: str, outputs: Mapping[str, float], features: Features) -> Rule | None:
    """What the rule for a failure says; ``None`` when there is none, or it does not hold.

    Args:
        failure_type: What.
        outputs: Of the detectors, by name.
        features: What they judged by.
    """
    if failure_type == "queue_saturation":
        waiting, finished = (features.value(name, 0.0) for name in ("requests_waiting", "requests_finished_per_second"))
        drains = waiting / max(finished, 0.1) >= LEAST_DRAIN_SECONDS
        return QUEUE_LASTS if waiting >= LEAST_WAITING and drains else None
    if failure_type == "memory_exhaustion":
        leak = _steep_leak(outputs, features)
        if leak is not None:
            return leak
        near, holds = outputs["memory_near_20s"], outputs["memory_grown"] >= LEAST_MEMORY_GROWTH
    elif failure_type == "fd_exhaustion":
        near, holds = outputs["fds_near_20s"], outputs["fds_level"] >= LEAST_FDS_LEVEL
    else:
        return None
    return Rule(0.65 + 0.3 * near) if holds and near >= LEAST_NEARNESS else None
