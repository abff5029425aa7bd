"""Detectors: each turns features into a few numbers between 0 and 1 that speak for a coming failure."""

from vllm_monitor.predictive_failure_detection.detectors.detector import Detector
from vllm_monitor.predictive_failure_detection.detectors.registry import make_detectors

__all__ = ["Detector", "make_detectors"]
