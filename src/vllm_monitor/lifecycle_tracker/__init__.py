"""The lifecycle of servers: states from evidence, a checkpoint for every change, resumed after a restart."""

from vllm_monitor.lifecycle_tracker.checkpoint_store import CheckpointStore
from vllm_monitor.lifecycle_tracker.inside_facts import ENGINE_KEY, INSIDE_KEY, condition_since, is_inside
from vllm_monitor.lifecycle_tracker.life_figures import LifeFigures
from vllm_monitor.lifecycle_tracker.startup_timeline import PhaseTiming
from vllm_monitor.lifecycle_tracker.track import Facts
from vllm_monitor.lifecycle_tracker.tracker import LifecycleTracker, Observed
from vllm_monitor.lifecycle_tracker.transitions import TRANSITIONS, check_transition
from vllm_monitor.records import LifecycleState, StateTransition

__all__ = [
    "ENGINE_KEY",
    "INSIDE_KEY",
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
    "condition_since",
    "is_inside",
]
