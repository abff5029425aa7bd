"""The score of the predictions of a store: read, cut to a range of time, scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vllm_monitor.errors import ConfigurationError
from vllm_monitor.failures import Episode, stored_episodes
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.records import FailurePrediction, PredictionScore
from vllm_monitor.report.daily_counts import DAY_SECONDS, counts_between, day_start_of, rows_complete_since
from vllm_monitor.report.scores import FailureScore, Scores, score_predictions
from vllm_monitor.report.watched import watched_range

__all__ = ["LONGEST_HORIZON_SECONDS", "ScoreReport", "score_report"]

LONGEST_HORIZON_SECONDS = DAY_SECONDS
"""How long before the range predictions are looked for that may foretell failures in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreReport:
    """Scores, and what they are of.

    Args:
        generated_at: Unix seconds at which it was made.
        target: The only server it is of; ``None`` for all.
        failure_type: The only failure type it is of; ``None`` for all.
        start: Unix seconds from which on was asked for; ``None`` for all that is stored.
        end: Unix seconds up to which was asked for; likewise.
        watched_from: Unix seconds of the first trace of watching in the range; ``None`` when there is none.
        watched_until: Unix seconds of the last.
        rows_complete_since: Unix seconds before which predictions have expired, so that recall and lead begin there;
            ``None`` when none has.
        scores: Over all types, and of each.
    """

    generated_at: float
    target: str | None
    failure_type: str | None
    start: float | None
    end: float | None
    watched_from: float | None
    watched_until: float | None
    rows_complete_since: float | None
    scores: Scores

    @property
    def days_watched(self) -> float:
        """From the first to the last trace of watching in the range, in days; gaps between them included."""
        if self.watched_from is None or self.watched_until is None:
            return 0.0
        return (self.watched_until - self.watched_from) / DAY_SECONDS

    @property
    def is_empty(self) -> bool:
        """Whether nothing was predicted and nothing failed."""
        return not self.scores.by_type

    def as_json(self) -> dict[str, Any]:
        """What ``vllm-monitor report --json`` prints; ``null`` where a figure is not known."""
        return {
            "generated_at": self.generated_at,
            "target": self.target,
            "failure_type": self.failure_type,
            "start": self.start,
            "end": self.end,
            "watched_from": self.watched_from,
            "watched_until": self.watched_until,
            "days_watched": self.days_watched,
            "rows_complete_since": self.rows_complete_since,
            "overall": _as_json(self.scores.overall),
            "types": [_as_json(score) for score in self.scores.by_type],
        }


def score_report(
    store: PersistenceManager,
    *,
    target: str | None = None,
    failure_type: str | None = None,
    start: float | None = None,
    end: float | None = None,
    now: float,
) -> ScoreReport:
    """Score the predictions of a store; reads all of the range, so not for a loop.

    Args:
        store: Where predictions, their daily counts and failures (as events) are.
        target: Only this server, as the store knows it.
        failure_type: Only this failure type.
        start: Unix seconds, inclusive; ``None`` is from the first on.
        end: Unix seconds, inclusive; ``None`` is up to the last.
        now: Unix seconds at which the report is made.

    Raises:
        ConfigurationError: When the range ends before it begins.
        StoreUnavailableError: When the store cannot be read.
    """
    if start is not None and end is not None and end < start:
        raise ConfigurationError("the range ends before it begins", hint="Pass a start that is before the end.")
    # Whole days, so that rows can be compared with counts. Counts are read first: what is predicted in between is then
    # a row too many, which means nothing, and not one too few, which would mean that rows have expired.
    reach = None if start is None else day_start_of(start - LONGEST_HORIZON_SECONDS)
    day_end = None if end is None else day_start_of(end) + DAY_SECONDS
    counts = store.get_prediction_scores(failure_type, reach, end, target=target)
    predictions = store.get_predictions(failure_type, reach, day_end, limit=None, target=target)
    failures = _failures(store, target, failure_type, reach)
    complete_since = rows_complete_since(counts, predictions)
    within = counts_between(counts, predictions, start, end)
    watched = watched_range(store, target, start, end, now=now, traces=_traces(predictions, failures, within))
    scores = score_predictions(
        predictions,
        failures,
        within,
        start=float("-inf") if start is None else start,
        end=float("inf") if end is None else end,
        watched_seconds=watched[1] - watched[0] if watched is not None else 0.0,
        rows_complete_since=complete_since,
    )
    return ScoreReport(
        generated_at=now,
        target=target,
        failure_type=failure_type,
        start=start,
        end=end,
        watched_from=watched[0] if watched is not None else None,
        watched_until=watched[1] if watched is not None else None,
        rows_complete_since=complete_since,
        scores=scores,
    )


def _failures(
    store: PersistenceManager, target: str | None, failure_type: str | None, reach: float | None
) -> list[Episode]:
    found = stored_episodes(store, target=target, start=reach)
    return [one for one in found if failure_type in (None, one.failure_type)]


def _traces(
    predictions: Sequence[FailurePrediction], failures: Sequence[Episode], counts: Sequence[PredictionScore]
) -> list[float]:
    """Times at which somebody must have watched. Days of which only counts are left are watched from their start."""
    traces = [one.timestamp for one in predictions] + [one.happened_at for one in failures]
    with_rows = {day_start_of(one.timestamp) for one in predictions}
    return traces + [one.day_start for one in counts if one.day_start not in with_rows]


def _as_json(score: FailureScore) -> dict[str, Any]:
    calibration = score.calibration
    return {
        "failure_type": score.failure_type,
        "predictions": score.predictions,
        "happened": score.happened,
        "did_not_happen": score.did_not_happen,
        "mitigated": score.mitigated,
        "censored": score.censored,
        "open": score.open,
        "is_calibrated": score.is_calibrated,
        "precision": score.precision,
        "false_alarms_per_day": score.false_alarms_per_day,
        "failures": score.failures,
        "failures_judged": score.failures_judged,
        "failures_predicted": score.failures_predicted,
        "recall": score.recall,
        "lead_seconds": None if score.lead_seconds is None else asdict(score.lead_seconds),
        "ttf_error_seconds": score.time_to_failure.median_seconds,
        "ttf_count": score.time_to_failure.count,
        "interval_coverage": score.time_to_failure.interval_coverage,
        "interval_count": score.time_to_failure.interval_count,
        "base_rate": calibration.base_rate,
        "brier": calibration.brier,
        "brier_skill": calibration.brier_skill,
        "ece": calibration.ece,
        "bins": [asdict(one) for one in calibration.bins],
    }
