"""Which detectors there are, in the order in which hazards read them."""

from __future__ import annotations

from vllm_monitor.predictive_failure_detection.detectors.change_detection import ChangeDetection
from vllm_monitor.predictive_failure_detection.detectors.conformal_anomaly import ConformalAnomaly
from vllm_monitor.predictive_failure_detection.detectors.detector import Detector
from vllm_monitor.predictive_failure_detection.detectors.ewma import Ewma
from vllm_monitor.predictive_failure_detection.detectors.extrapolation import Extrapolation
from vllm_monitor.predictive_failure_detection.detectors.half_space_trees import HalfSpaceTrees
from vllm_monitor.predictive_failure_detection.detectors.heartbeat_gaps import HeartbeatGaps
from vllm_monitor.predictive_failure_detection.detectors.precursor_patterns import PrecursorPatterns
from vllm_monitor.predictive_failure_detection.detectors.saturation import Saturation
from vllm_monitor.predictive_failure_detection.detectors.state_graph import StateGraph

__all__ = ["make_detectors"]


def make_detectors() -> tuple[Detector, ...]:
    """New detectors for one server."""
    return (
        Saturation(),
        Extrapolation(),
        Ewma(),
        ChangeDetection(),
        HeartbeatGaps(),
        HalfSpaceTrees(),
        ConformalAnomaly(),
        PrecursorPatterns(),
        StateGraph(),
    )
