"""Rules beside the hazards: a figure that rises in a straight line to a limit that is known will be there.

Hazards learn what usually follows; that a process which grows by sixty megabytes a second runs out of memory needs no
examples, only arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["rule_probability"]

LEAST_NEARNESS = 0.2
"""Four minutes away, see ``Extrapolation``."""
LEAST_MEMORY_GROWTH = 0.14
"""As a logarithm: 15 % in six minutes; a server that warms up stays below."""
LEAST_FDS_LEVEL = 0.5


def rule_probability(failure_type: str, outputs: Mapping[str, float]) -> float:
    """Probability of a failure by the rule for it; 0 when there is none, or it does not hold.

    Args:
        failure_type: What.
        outputs: Of the detectors, by name.
    """
    if failure_type == "memory_exhaustion":
        near, holds = outputs["memory_near_20s"], outputs["memory_grown"] >= LEAST_MEMORY_GROWTH
    elif failure_type == "fd_exhaustion":
        near, holds = outputs["fds_near_20s"], outputs["fds_level"] >= LEAST_FDS_LEVEL
    else:
        return 0.0
    return 0.65 + 0.3 * near if holds and near >= LEAST_NEARNESS else 0.0
