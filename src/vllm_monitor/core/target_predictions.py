"""The predictions of one target: made, told, open, settled."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from vllm_monitor.core.stored_story import StoredStory
from vllm_monitor.failures import Episode
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.picture import Snapshot
from vllm_monitor.predictive_failure_detection import PredictionSettlement, Predictor, Restrained, Settled
from vllm_monitor.records import Condition, Event, FailurePrediction, PageObservation, Severity

__all__ = ["PredictionSource", "PredictionStep", "TargetPredictions"]

Answer = TypeVar("Answer")
_log = logging.getLogger(__name__)

RESOLVED_PER_TICK = 50
"""After a long absence many may be overdue; writing them all at once would fill the queue of the store."""
PREDICTIONS_PER_TICK = 50
MOST_FIGURE = 1e12
REST_SECONDS = 60.0
"""A predictor that failed is not asked for so long."""
_UNSEEN = frozenset({Condition.UNKNOWN, Condition.UNREACHABLE})
"""Verdicts that say that the server cannot be seen."""


class PredictionSource(Protocol):
    """Something else that predicts and stores what it predicts: the plugins."""

    def take_predictions(self, target: str) -> list[FailurePrediction]:
        """What was predicted of a server since this was last asked."""
        ...

    def note_resolved(self, prediction: FailurePrediction) -> None:
        """It is known what became of a prediction."""
        ...


@dataclass(frozen=True, slots=True)
class PredictionStep:
    """What one tick brought.

    Args:
        made: New predictions.
        settled: Predictions of which it is known now what became of them.
        events: Both, told.
        abstains: Why nothing is predicted at the moment; empty when something might be.
        suppressed: Predictions that the daily budget has held back, by failure type.
    """

    made: tuple[FailurePrediction, ...] = ()
    settled: tuple[Settled, ...] = ()
    events: tuple[Event, ...] = ()
    abstains: str = ""
    suppressed: Mapping[str, int] = field(default_factory=dict)


class TargetPredictions:
    """Predictions of one target from their making to their outcome. Not thread-safe: one owner.

    Args:
        target: The server's URL.
        store: Where predictions and outcomes go; ``None`` keeps nothing.
        predictor: Makes predictions; ``None`` for none.
        source: Makes and stores predictions beside it; ``None`` for none.
        longest_hole_seconds: A stretch without a look that is longer than this may hide a failure.
    """

    def __init__(
        self,
        target: str,
        *,
        store: PersistenceManager | None,
        predictor: Predictor | None,
        source: PredictionSource | None,
        longest_hole_seconds: float,
    ) -> None:
        self.target = target
        self._store = store
        self._predictor = predictor
        self._source = source
        self._settlement = PredictionSettlement(target, longest_hole_seconds=longest_hole_seconds)
        self._overdue: deque[Settled] = deque()
        self._probabilities: dict[str, float] = {}
        self._rests_until: float | None = None

    def resume(self, now: float, story: StoredStory) -> None:
        """Take up what was open when an earlier watch ended; what is settled by that is told with the next ticks."""
        self._overdue.extend(
            self._settlement.resume(
                now,
                story.predictions,
                failures=story.failures,
                watched=story.watched,
                mitigations=story.mitigations,
            )
        )
        self._note_open()

    def note_mitigation(self, at: float) -> None:
        """An attempt to mitigate began at this time (unix seconds)."""
        self._settlement.note_mitigation(at)
        self._ask(at, lambda predictor: predictor.note_action(self.target), None)

    def open(self) -> tuple[FailurePrediction, ...]:
        """Predictions of which it is not known yet what became of them, oldest first."""
        return tuple(sorted(self._settlement.open(), key=lambda prediction: prediction.timestamp))

    def open_probabilities(self) -> dict[str, float]:
        """Failure type to the probability of the newest open prediction of it."""
        return self._probabilities

    def observe(
        self,
        snapshot: Snapshot,
        page: PageObservation | None,
        failures: Sequence[Episode],
        ongoing: Sequence[Episode],
        *,
        meant: bool,
        undecided: Collection[str] = (),
    ) -> PredictionStep:
        """One tick.

        Args:
            snapshot: The picture.
            page: The newest metrics page that came with it.
            failures: Failures that have happened, or are over.
            ongoing: Failures that go on.
            meant: Somebody has stopped, paused or restarted the server on purpose.
            undecided: Failure types of which this tick cannot tell.
        """
        now = snapshot.timestamp
        taken = [] if self._source is None else self._source.take_predictions(self.target)
        made = [one for one in taken if self._settlement.add(one)]
        settled = self._settlement.observe(
            now,
            known=snapshot.condition not in _UNSEEN,
            failures=failures,
            ongoing=ongoing,
            meant=meant,
            undecided=undecided,
        )
        while self._overdue and len(settled) < RESOLVED_PER_TICK:
            settled.append(replace(self._overdue.popleft(), resolved_at=now))
        if meant:
            self._ask(now, lambda predictor: predictor.note_action(self.target), None)
        none: list[FailurePrediction] = []
        foretold = self._ask(now, lambda predictor: _usable(predictor.observe(snapshot, page, failures, ongoing)), none)
        for prediction in [one if one.target else replace(one, target=self.target) for one in foretold]:
            if self._settlement.add(prediction):
                made.append(prediction)
                if self._store is not None:
                    self._store.enqueue_prediction(prediction)
        abstains, suppressed = self._restraint(now)
        if not made and not settled:
            return PredictionStep(abstains=abstains, suppressed=suppressed)
        for one in settled:
            self._keep(one)
        self._note_open()
        events = [_resolved(one) for one in settled] + [_predicted(now, one) for one in made]
        return PredictionStep(tuple(made), tuple(settled), tuple(events), abstains, suppressed)

    def _restraint(self, now: float) -> tuple[str, Mapping[str, int]]:
        """Why nothing is predicted, and what was held back."""
        if self._predictor is None:
            return "predictions are switched off", {}
        if self._rests_until is not None and 0.0 < self._rests_until - now <= REST_SECONDS:
            return "the predictor failed and rests", {}
        if not isinstance(self._predictor, Restrained):
            return "", {}
        return self._predictor.outlook(self.target).abstains, self._predictor.suppressed(self.target)

    def _note_open(self) -> None:
        self._probabilities = {prediction.failure_type: prediction.probability for prediction in self.open()}

    def _ask(self, now: float, ask: Callable[[Predictor], Answer], otherwise: Answer) -> Answer:
        """What the predictor says, unless it has failed."""
        rests = self._rests_until is not None and 0.0 < self._rests_until - now <= REST_SECONDS
        if self._predictor is None or rests:
            return otherwise
        try:
            return ask(self._predictor)
        except Exception:  # whatever it is, a target must not go unwatched because of it
            _log.exception("the predictor of %s failed and rests for a minute", self.target)
            self._rests_until = now + REST_SECONDS
            return otherwise

    def _keep(self, settled: Settled) -> None:
        prediction = settled.prediction
        if self._store is not None:
            self._store.enqueue_prediction_outcome(
                prediction.prediction_id, settled.outcome, resolved_at=settled.resolved_at, prediction=prediction
            )
        if self._source is not None:
            self._source.note_resolved(prediction)
        if "plugin" not in prediction.metadata:
            outcome = settled.outcome
            self._ask(settled.resolved_at, lambda predictor: predictor.note_resolved(prediction, outcome), None)


def _usable(answer: object) -> list[FailurePrediction]:
    """What can be told and stored of an answer; one that is none at all is the predictor's fault."""
    if not isinstance(answer, list | tuple) or not all(isinstance(one, FailurePrediction) for one in answer):
        msg = "it did not answer with a list of predictions"
        raise TypeError(msg)
    for one in answer[:PREDICTIONS_PER_TICK]:
        figures = (one.timestamp, one.probability, one.time_to_failure, one.horizon_seconds)
        if not all(isinstance(figure, int | float) and abs(figure) < MOST_FIGURE for figure in figures):
            msg = f"a prediction of {one.failure_type!r} has a time or probability that is no number"
            raise TypeError(msg)
        if not all(isinstance(factor, str) for factor in one.contributing_factors):
            msg = f"a prediction of {one.failure_type!r} has factors that are no text"
            raise TypeError(msg)
    return list(answer[:PREDICTIONS_PER_TICK])


def _predicted(now: float, prediction: FailurePrediction) -> Event:
    why = "; ".join(prediction.contributing_factors[:3])
    message = (
        f"{prediction.failure_type} is likely within {prediction.horizon_seconds:.0f} s "
        f"({prediction.probability:.0%}{'' if prediction.calibrated else ' uncalibrated'}, "
        f"expected in {prediction.time_to_failure:.0f} s{_interval(prediction)})"
    )
    if prediction.recommended_mitigations:
        why += f"; may help: {', '.join(prediction.recommended_mitigations[:2])}"
    return Event(
        timestamp=now,
        event_type="failure_predicted",
        message=f"{message}: {why}" if why else message,
        severity=Severity.WARNING,
        target=prediction.target,
        data={
            "prediction_id": prediction.prediction_id,
            "failure_type": prediction.failure_type,
            "probability": prediction.probability,
            "calibrated": prediction.calibrated,
            "time_to_failure": prediction.time_to_failure,
            "time_to_failure_low": prediction.time_to_failure_low,
            "time_to_failure_high": prediction.time_to_failure_high,
            "horizon_seconds": prediction.horizon_seconds,
            "contributing_factors": list(prediction.contributing_factors),
            "recommended_mitigations": list(prediction.recommended_mitigations),
        },
    )


def _interval(prediction: FailurePrediction) -> str:
    low, high = prediction.time_to_failure_low, prediction.time_to_failure_high
    return "" if low is None or high is None else f", {low:.0f} to {high:.0f}"


def _resolved(settled: Settled) -> Event:
    prediction = settled.prediction
    return Event(
        timestamp=settled.resolved_at,
        event_type="prediction_resolved",
        message=f"the prediction of {prediction.failure_type} is settled as {settled.outcome.value}: {settled.reason}",
        target=prediction.target,
        data={
            "prediction_id": prediction.prediction_id,
            "failure_type": prediction.failure_type,
            "outcome": settled.outcome.value,
            "lead_seconds": settled.lead_seconds,
        },
    )
