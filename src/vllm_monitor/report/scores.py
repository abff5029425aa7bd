"""The score of predictions, per failure type and over all; pure functions over what a store gave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_monitor.failures import Episode
from vllm_monitor.predictive_failure_detection import Match, leads_by_failure, matches_of
from vllm_monitor.records import FAILURE_TYPES, FailurePrediction, PredictionOutcome, PredictionScore
from vllm_monitor.report.calibration import Calibration, calibration_of
from vllm_monitor.report.daily_counts import DAY_SECONDS
from vllm_monitor.report.foreseen import LeadTimes, TimeErrors, lead_times_of, time_errors_of

__all__ = ["RESOLVED_FOR_CALIBRATION", "FailureScore", "Scores", "score_predictions"]

RESOLVED_FOR_CALIBRATION = 20
"""With fewer resolved predictions the figures are mostly luck, and are called uncalibrated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureScore:
    """How good predictions of one failure type were, or of all.

    Args:
        failure_type: Which; ``None`` for all types together.
        predictions: How many were made, whatever became of them.
        happened: How many of them came true.
        did_not_happen: How many did not: false alarms.
        mitigated: How many nobody can judge because an action ran; in no other figure.
        censored: How many nobody can judge because the monitor was away or data were missing; likewise.
        open: How many are not resolved yet, or never will be; likewise.
        failures: Failures that have happened, as far as their events are left.
        failures_judged: Those of them from whose time all predictions are left; only these are in the recall.
        failures_predicted: Those of these that a prediction foretold, each once.
        leads: Seconds from the first prediction to each of these, shortest first.
        lead_seconds: The same in a few figures; ``None`` when none was foretold.
        time_to_failure: How well the time was told.
        calibration: How good the probabilities were.
        false_alarms_per_day: ``did_not_happen`` by the days watched; ``None`` when nothing was watched.
    """

    failure_type: str | None
    predictions: int
    happened: int
    did_not_happen: int
    mitigated: int
    censored: int
    open: int
    failures: int
    failures_judged: int
    failures_predicted: int
    leads: tuple[float, ...]
    lead_seconds: LeadTimes | None
    time_to_failure: TimeErrors
    calibration: Calibration
    false_alarms_per_day: float | None

    @property
    def resolved(self) -> int:
        """Predictions of which it is known whether they came true."""
        return self.happened + self.did_not_happen

    @property
    def is_calibrated(self) -> bool:
        """Whether so many are resolved that the figures mean something."""
        return self.resolved >= RESOLVED_FOR_CALIBRATION

    @property
    def precision(self) -> float | None:
        """The share of resolved predictions that came true, 0 to 1; ``None`` when none is resolved."""
        return self.happened / self.resolved if self.resolved else None

    @property
    def recall(self) -> float | None:
        """The share of failures that were foretold, 0 to 1; ``None`` when none can be judged."""
        return self.failures_predicted / self.failures_judged if self.failures_judged else None


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores over all failure types, and of each that was predicted or has happened."""

    overall: FailureScore
    by_type: tuple[FailureScore, ...]


def score_predictions(
    predictions: Sequence[FailurePrediction],
    failures: Sequence[Episode],
    counts: Sequence[PredictionScore],
    *,
    start: float,
    end: float,
    watched_seconds: float,
    rows_complete_since: float | None = None,
) -> Scores:
    """Score predictions by what happened.

    Numbers by outcome, precision, false alarms, Brier score and calibration come from the counts alone, so that
    they do not change when rows expire; recall, lead and errors of the time from rows and failures that are left.

    Args:
        predictions: Rows that are left: those made within the range, and those before it that may foretell
            failures in it.
        failures: Failures of the range, and those around it, since a prediction speaks of the first after it.
        counts: Daily counts of the range, cut to it (:func:`counts_between`); without expired rows those of
            :func:`counts_of`.
        start: Unix seconds at which the range begins, inclusive; may be infinite.
        end: Unix seconds at which it ends, inclusive; may be infinite.
        watched_seconds: How much of the range was watched.
        rows_complete_since: Unix seconds before which rows have expired; failures before are not judged.
    """
    within = [one for one in failures if start <= one.happened_at <= end]
    judged = [one for one in within if rows_complete_since is None or one.happened_at >= rows_complete_since]
    matches = matches_of(predictions, failures)
    of_the_range = [one for one in matches if start <= one.prediction.timestamp <= end]

    def score(kind: str | None) -> FailureScore:
        of_kind = [one for one in within if kind in (None, one.failure_type)]
        return _score(
            kind,
            [one for one in counts if kind in (None, one.failure_type)],
            [one for one in matches if kind in (None, one.failure.failure_type)],
            [one for one in of_the_range if kind in (None, one.failure.failure_type)],
            failures=len(of_kind),
            judged={one for one in judged if kind in (None, one.failure_type)},
            days=watched_seconds / DAY_SECONDS,
        )

    kinds = {one.failure_type for one in counts} | {one.failure_type for one in within}
    known = [kind for kind in FAILURE_TYPES if kind in kinds]
    return Scores(score(None), tuple(score(kind) for kind in [*known, *sorted(kinds - set(known))]))


def _score(
    kind: str | None,
    counts: Sequence[PredictionScore],
    matches: Sequence[Match],
    of_the_range: Sequence[Match],
    *,
    failures: int,
    judged: set[Episode],
    days: float,
) -> FailureScore:
    outcomes: Counter[PredictionOutcome] = Counter()
    for one in counts:
        outcomes[one.outcome] += one.predictions
    leads = sorted(lead for failure, lead in leads_by_failure(matches).items() if failure in judged)
    return FailureScore(
        failure_type=kind,
        predictions=outcomes.total(),
        happened=outcomes[PredictionOutcome.HAPPENED],
        did_not_happen=outcomes[PredictionOutcome.DID_NOT_HAPPEN],
        mitigated=outcomes[PredictionOutcome.MITIGATED],
        censored=outcomes[PredictionOutcome.CENSORED],
        open=outcomes[PredictionOutcome.OPEN],
        failures=failures,
        failures_judged=len(judged),
        failures_predicted=len(leads),
        leads=tuple(leads),
        lead_seconds=lead_times_of(leads),
        time_to_failure=time_errors_of(of_the_range),
        calibration=calibration_of(counts),
        false_alarms_per_day=outcomes[PredictionOutcome.DID_NOT_HAPPEN] / days if days > 0.0 else None,
    )
