"""The score of predictions, recomputed from what is stored: table, JSON, pictures."""

from vllm_monitor.report.calibration import Calibration, ReliabilityBin, calibration_of
from vllm_monitor.report.daily_counts import counts_between, counts_of, rows_complete_since
from vllm_monitor.report.foreseen import LeadTimes, TimeErrors
from vllm_monitor.report.pictures import lead_time_picture, reliability_picture
from vllm_monitor.report.score_report import ScoreReport, score_report
from vllm_monitor.report.scores import RESOLVED_FOR_CALIBRATION, FailureScore, Scores, score_predictions

__all__ = [
    "RESOLVED_FOR_CALIBRATION",
    "Calibration",
    "FailureScore",
    "LeadTimes",
    "ReliabilityBin",
    "ScoreReport",
    "Scores",
    "TimeErrors",
    "calibration_of",
    "counts_between",
    "counts_of",
    "lead_time_picture",
    "reliability_picture",
    "rows_complete_since",
    "score_predictions",
    "score_report",
]
