"""What would have been predicted over stored history: as the watch did, as it would now, and with other settings.

Figures come from the stored pages through the same picture as live; conditions and failures are those that the watch
has stored, because it alone saw processes and health. Every replay begins with nothing learned.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from vllm_monitor.core.stored_states import StoredStates
from vllm_monitor.failures import Episode, Facts, FailureWatch, stored_episodes
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.picture import StoredPages, TargetPicture
from vllm_monitor.predictive_failure_detection import (
    PredictionSettings,
    PredictionSettlement,
    PredictiveFailureDetector,
    leads_by_failure,
    matches_of,
)
from vllm_monitor.records import Condition, FailurePrediction, PredictionOutcome

__all__ = ["BacktestScore", "backtest_predictions", "stored_score"]

TELL_SECONDS = 60.0
DAY_SECONDS = 86_400.0
_MEANT = (Condition.PAUSED, Condition.STOPPED)
_UNSEEN = (Condition.UNKNOWN, Condition.UNREACHABLE)


@dataclass(frozen=True, slots=True)
class BacktestScore:
    """What predictions were worth over a stretch of history of one server.

    Args:
        target: The server's URL.
        settings: In words: what they were made with.
        days: How long the stretch was watched, in days.
        predictions: All of them, with their outcomes, oldest first.
        failures: Failures that happened, oldest first.
    """

    target: str
    settings: str
    days: float
    predictions: tuple[FailurePrediction, ...]
    failures: tuple[Episode, ...]

    def _of(self, outcome: PredictionOutcome) -> int:
        return sum(one.outcome is outcome for one in self.predictions)

    def leads(self) -> list[float]:
        """Seconds between the first prediction of each failure that was predicted, and the failure."""
        return list(leads_by_failure(matches_of(self.predictions, self.failures)).values())

    def by_type(self) -> dict[str, tuple[int, int, float | None]]:
        """Of each failure type that has happened: how often, how often foretold, and the median lead in seconds."""
        leads = leads_by_failure(matches_of(self.predictions, self.failures))
        found: dict[str, tuple[int, int, float | None]] = {}
        for kind in sorted({one.failure_type for one in self.failures}):
            own = [lead for episode, lead in leads.items() if episode.failure_type == kind]
            count = sum(one.failure_type == kind for one in self.failures)
            found[kind] = (count, len(own), statistics.median(own) if own else None)
        return found

    def as_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        leads = self.leads()
        false = self._of(PredictionOutcome.DID_NOT_HAPPEN)
        return {
            "target": self.target,
            "settings": self.settings,
            "days": round(self.days, 4),
            "failures": len(self.failures),
            "failures_predicted": len(leads),
            "median_lead_seconds": statistics.median(leads) if leads else None,
            "predictions": len(self.predictions),
            **{outcome.value: self._of(outcome) for outcome in PredictionOutcome},
            "false_alarms_per_day": false / self.days if self.days > 0 else None,
            "types": [
                {"failure_type": kind, "failures": count, "failures_predicted": foretold, "median_lead_seconds": lead}
                for kind, (count, foretold, lead) in self.by_type().items()
            ],
        }


def stored_score(store: PersistenceManager, target: str, start: float, end: float) -> BacktestScore:
    """What the watch itself has predicted in a stretch of time."""
    found = store.get_predictions(start_time=start, end_time=end, limit=None, target=target)
    days = _days_watched(StoredPages(store, target).look_times(start, end))
    return BacktestScore(target, "as watched", days, tuple(found[::-1]), tuple(_failures(store, target, start, end)))


def backtest_predictions(
    store: PersistenceManager,
    target: str,
    start: float,
    end: float,
    settings: PredictionSettings,
    *,
    words: str = "by today's predictor",
    advance: Callable[[float], None] = lambda _seconds: None,
) -> BacktestScore:
    """What would have been predicted in a stretch of time.

    Args:
        store: The store; nothing is written to it.
        target: The server's URL.
        start: Unix seconds.
        end: Unix seconds.
        settings: Of the predictions.
        words: What the settings are called.
        advance: Told how many seconds of history were read.
    """
    states = StoredStates(store.get_checkpoints(end_time=end, limit=None, target=target))
    known = stored_episodes(store, target=target)
    stored = [one for one in known if one.happened_at <= end and (one.ended_at is None or one.ended_at >= start)]
    watch = None if known else FailureWatch(target)
    picture, detector = TargetPicture(target), PredictiveFailureDetector(settings)
    pages = StoredPages(store, target)
    looks = pages.look_times(start, end)
    hole = _longest_hole([later - earlier for earlier, later in pairwise(looks)])
    settlement = PredictionSettlement(target, longest_hole_seconds=hole)
    failures = {(one.failure_type, one.happened_at): one for one in stored if one.happened_at >= start}
    predictions: dict[str, FailurePrediction] = {}
    before = told = start
    for now, page in pages.looks(start, end):
        if page is not None:
            picture.observe(page)
            continue
        state, condition, _ = states.at(now)
        snapshot = replace(picture.snapshot(now, state, picture.values(now)), condition=condition)
        if watch is None:
            fresh = [replace(one, ended_at=None) for one in stored if before < one.happened_at <= now]
            ongoing = [one for one in stored if one.happened_at <= now and (one.ended_at is None or now < one.ended_at)]
        else:
            fresh = watch.observe(snapshot, Facts())
            ongoing = watch.current()
            failures |= {(one.failure_type, one.happened_at): one for one in fresh}
        before = now
        for settled in settlement.observe(
            now, known=condition not in _UNSEEN, failures=fresh, ongoing=ongoing, meant=condition in _MEANT
        ):
            predictions[settled.prediction.prediction_id] = settled.resolved
            detector.note_resolved(settled.prediction, settled.outcome)
        for made in detector.observe(snapshot, None, fresh, ongoing):
            predictions[made.prediction_id] = made
            settlement.add(made)
        if now - told >= TELL_SECONDS:
            advance(now - told)
            told = now
    return BacktestScore(
        target,
        words,
        _days_watched(looks),
        tuple(predictions.values()),
        tuple(sorted(failures.values(), key=lambda one: one.happened_at)),
    )


def _failures(store: PersistenceManager, target: str, start: float, end: float) -> list[Episode]:
    return [one for one in stored_episodes(store, target=target, start=start) if start <= one.happened_at <= end]


def _days_watched(looks: Sequence[float]) -> float:
    """Time between looks that are not further apart than a hole, in days."""
    gaps = [later - earlier for earlier, later in pairwise(looks)]
    return sum(gap for gap in gaps if gap <= _longest_hole(gaps)) / DAY_SECONDS


def _longest_hole(gaps: Sequence[float]) -> float:
    """Looks further apart than this have a hole between them: half a minute, or a few looks where they are rare."""
    usual = statistics.median(gaps) if gaps else 0.0
    return max(30.0, 4.0 * usual)
