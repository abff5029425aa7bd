"""Predictions: what will fail, when, how sure it is, and why; every one is settled by itself and scored."""

from vllm_monitor.predictive_failure_detection.failure_detector import PredictiveFailureDetector
from vllm_monitor.predictive_failure_detection.hazards import HORIZON_SECONDS, Forecast
from vllm_monitor.predictive_failure_detection.lead import lead_seconds
from vllm_monitor.predictive_failure_detection.predictor_door import Predictor
from vllm_monitor.predictive_failure_detection.settings import PredictionSettings
from vllm_monitor.predictive_failure_detection.settlement import PredictionSettlement, Settled
from vllm_monitor.predictive_failure_detection.target_predictor import Outlook

__all__ = [
    "HORIZON_SECONDS",
    "Forecast",
    "Outlook",
    "PredictionSettings",
    "PredictionSettlement",
    "PredictiveFailureDetector",
    "Predictor",
    "Settled",
    "lead_seconds",
]
