"""Predictions: what will fail, when, how sure it is, and why; every one is settled by itself and scored."""

from vllm_monitor.predictive_failure_detection.failure_detector import PredictiveFailureDetector
from vllm_monitor.predictive_failure_detection.foretold import Match, leads_by_failure, matches_of
from vllm_monitor.predictive_failure_detection.hazards import HORIZON_SECONDS, Forecast
from vllm_monitor.predictive_failure_detection.predictor_door import Predictor, Restrained
from vllm_monitor.predictive_failure_detection.settings import PredictionSettings
from vllm_monitor.predictive_failure_detection.settlement import PredictionSettlement, Settled
from vllm_monitor.predictive_failure_detection.target_predictor import Outlook

__all__ = [
    "HORIZON_SECONDS",
    "Forecast",
    "Match",
    "Outlook",
    "PredictionSettings",
    "PredictionSettlement",
    "PredictiveFailureDetector",
    "Predictor",
    "Restrained",
    "Settled",
    "leads_by_failure",
    "matches_of",
]
