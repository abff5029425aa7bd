"""Scores a recording: what was predicted and what was found, against what was injected and what clients met."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from vllm_monitor.collectors import RecordedTruth
from vllm_monitor.core.pipeline import Tick
from vllm_monitor.failures import Episode
from vllm_monitor.predictive_failure_detection import leads_by_failure, matches_of
from vllm_monitor.records import FailurePrediction, PredictionOutcome

__all__ = ["RecordingReport", "ScoredPrediction"]


@dataclass(frozen=True, slots=True)
class ScoredPrediction:
    """A prediction, and what became of it.

    Args:
        prediction: The prediction.
        outcome: ``OPEN`` when the recording ended before it was known.
        lead_seconds: How long before the failure it was made; ``None`` when it did not happen.
    """

    prediction: FailurePrediction
    outcome: PredictionOutcome = PredictionOutcome.OPEN
    lead_seconds: float | None = None


@dataclass(slots=True)
class RecordingReport:
    """What predictions were worth in one recording. Feed it tick by tick.

    Args:
        recording: Name of the recording.
        truth: What really happened.
        began_at: Unix seconds of the first tick.
        ticks: How many ticks there were.
        predictions: Every prediction, oldest first.
        failures: Every failure, oldest first.
    """

    recording: str
    truth: RecordedTruth
    began_at: float | None = None
    ticks: int = 0
    predictions: list[ScoredPrediction] = field(default_factory=list)
    failures: list[Episode] = field(default_factory=list)

    def add(self, tick: Tick) -> None:
        """Take in one tick."""
        self.ticks += 1
        if self.began_at is None:
            self.began_at = tick.snapshot.timestamp
        for episode in tick.failures:
            key = (episode.failure_type, episode.happened_at)
            known = next((n for n, one in enumerate(self.failures) if (one.failure_type, one.happened_at) == key), None)
            if known is None:
                self.failures.append(episode)
            else:
                self.failures[known] = episode
        self.predictions += [ScoredPrediction(one) for one in tick.predictions]
        for settled in tick.settled:
            for number, one in enumerate(self.predictions):
                if one.prediction.prediction_id == settled.prediction.prediction_id:
                    self.predictions[number] = replace(one, outcome=settled.outcome, lead_seconds=settled.lead_seconds)

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values; seconds count from the injection where there was one, else from the beginning."""
        truth = self.truth
        zero = truth.injected_at if truth.injected_at is not None else self.began_at or 0.0
        error_at = truth.first_client_error_at
        leads = leads_by_failure(matches_of((one.prediction for one in self.predictions), self.failures))
        return {
            "recording": self.recording,
            "ticks": self.ticks,
            "began_at": self.began_at,
            "fault": truth.fault,
            "injected_at": truth.injected_at,
            "first_client_error_seconds": None if error_at is None else round(error_at - zero, 3),
            "requests": truth.requests,
            "failed_requests": truth.failed_requests,
            "predictions": [
                {
                    "ts": round(one.prediction.timestamp, 3),
                    "seconds": round(one.prediction.timestamp - zero, 3),
                    "failure_type": one.prediction.failure_type,
                    "probability": round(one.prediction.probability, 4),
                    "time_to_failure": round(one.prediction.time_to_failure, 1),
                    "time_to_failure_low": one.prediction.time_to_failure_low,
                    "time_to_failure_high": one.prediction.time_to_failure_high,
                    "calibrated": one.prediction.calibrated,
                    "contributing_factors": one.prediction.contributing_factors,
                    "recommended_mitigations": one.prediction.recommended_mitigations,
                    "outcome": one.outcome.value,
                    "lead_seconds": one.lead_seconds,
                    "seconds_before_client_error": None
                    if error_at is None or one.prediction.timestamp >= error_at
                    else round(error_at - one.prediction.timestamp, 3),
                }
                for one in self.predictions
            ],
            "failures": [
                {
                    "failure_type": one.failure_type,
                    "began_seconds": round(one.began_at - zero, 3),
                    "happened_seconds": round(one.happened_at - zero, 3),
                    "ended_seconds": None if one.ended_at is None else round(one.ended_at - zero, 3),
                    "reason": one.reason,
                    "lead_seconds": leads.get(one),
                }
                for one in self.failures
            ],
        }
