"""Which failures were foretold, and how long before: the one reading of it for reports, recordings and back-tests."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from vllm_monitor.failures import Episode
from vllm_monitor.records import FailurePrediction

__all__ = ["Match", "leads_by_failure", "matches_of"]


@dataclass(frozen=True, slots=True)
class Match:
    """A prediction and the failure that it foretold."""

    prediction: FailurePrediction
    failure: Episode

    @property
    def seconds(self) -> float:
        """From the prediction to the failure; above 0."""
        return self.failure.happened_at - self.prediction.timestamp


def matches_of(predictions: Iterable[FailurePrediction], failures: Iterable[Episode]) -> list[Match]:
    """Predictions that were followed by what they foretold.

    A prediction speaks of the first failure of its target and type after it, and has foretold it when that came
    within its horizon. So one prediction foretells one failure; a failure may have been foretold by many.
    """
    by_subject: defaultdict[tuple[str, str], list[Episode]] = defaultdict(list)
    for episode in sorted(failures, key=lambda one: one.happened_at):
        by_subject[episode.target, episode.failure_type].append(episode)
    found = []
    for prediction in predictions:
        after = by_subject.get((prediction.target, prediction.failure_type), [])
        place = bisect_right(after, prediction.timestamp, key=lambda one: one.happened_at)
        if place < len(after) and after[place].happened_at - prediction.timestamp <= prediction.horizon_seconds:
            found.append(Match(prediction, after[place]))
    return found


def leads_by_failure(matches: Iterable[Match]) -> dict[Episode, float]:
    """Each failure that was foreseen, and the seconds from its earliest prediction to it."""
    leads: dict[Episode, float] = {}
    for match in matches:
        leads[match.failure] = max(match.seconds, leads.get(match.failure, 0.0))
    return leads
