"""Predictions: what will fail, when, how sure it is, and why; every one is settled by itself and scored."""

from vllm_monitor.predictive_failure_detection.predictor_door import Predictor
from vllm_monitor.predictive_failure_detection.settlement import PredictionSettlement, Settled

__all__ = ["PredictionSettlement", "Predictor", "Settled"]
