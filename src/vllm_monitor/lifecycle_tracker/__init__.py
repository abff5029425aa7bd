"""The lifecycle of servers: states from evidence, a checkpoint for every change, resumed after a restart."""

from vllm_monitor.lifecycle_tracker.life_figures import LifeFigures
from vllm_monitor.lifecycle_tracker.startup_timeline import PhaseTiming
from vllm_monitor.lifecycle_tracker.track import Facts
from vllm_monitor.lifecycle_tracker.tracker import CheckpointStore, LifecycleTracker, Observed
from vllm_monitor.lifecycle_tracker.transitions import TRANSITIONS, check_transition
from vllm_monitor.records import LifecycleState, StateTransition

__all__ = [
    "TRANSITIONS",
    "CheckpointStore",
    "Facts",
    "LifeFigures",
    "LifecycleState",
    "LifecycleTracker",
    "Observed",
    "PhaseTiming",
    "StateTransition",
    "check_transition",
]
