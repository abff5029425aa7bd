"""Happy paths: known-good executions, and how far later ones are from them."""

from vllm_monitor.happy_paths.comparison import Comparison, Deviation, compare, state_steps
from vllm_monitor.happy_paths.happy_paths import (
    VOLATILE_ARGUMENTS,
    HappyPaths,
    execution_of,
    fingerprint_of,
    has_failed,
)
from vllm_monitor.happy_paths.profile import PROFILED, ProfileBuilder, load_level
from vllm_monitor.records import HappyPath

__all__ = [
    "PROFILED",
    "VOLATILE_ARGUMENTS",
    "Comparison",
    "Deviation",
    "HappyPath",
    "HappyPaths",
    "ProfileBuilder",
    "compare",
    "execution_of",
    "fingerprint_of",
    "has_failed",
    "load_level",
    "state_steps",
]
