"""Saving predictions and their outcomes, failure patterns and scores, and asking for them."""

from __future__ import annotations

import dataclasses

from sqlalchemy import Connection

from vllm_monitor.errors import ConfigurationError
from vllm_monitor.persistence.codecs.arguments import checked_filter, checked_time, shown
from vllm_monitor.persistence.pending import Batch, RareItem
from vllm_monitor.persistence.records.async_forms import in_thread
from vllm_monitor.persistence.records.prediction_scores import read_scores
from vllm_monitor.persistence.records.rare_kinds import PATTERNS, PREDICTIONS
from vllm_monitor.persistence.records.rare_rows import Row
from vllm_monitor.persistence.records.record_access import RecordAccess, is_intact
from vllm_monitor.persistence.samples.sample_rows import SeriesCatalogue
from vllm_monitor.records import FailurePattern, FailurePrediction, PredictionOutcome, PredictionScore

__all__ = ["PredictionVerbs"]


class PredictionVerbs(RecordAccess):
    """The verbs for predictions and failure patterns; part of ``PersistenceManager``."""

    def save_prediction(
        self,
        prediction: FailurePrediction,
        checkpoint_id: str | None = None,
        actual_outcome: PredictionOutcome | str | None = None,
    ) -> str:
        """Save a prediction; otherwise as :meth:`save_checkpoint`.

        Args:
            prediction: The prediction.
            checkpoint_id: The checkpoint it was made from; given, it replaces the prediction's own.
            actual_outcome: What became of it, as a member or its name; given, it replaces the prediction's own
                outcome, and ``resolved_at`` is now unless the prediction says when.

        Raises:
            ConfigurationError: When there is no such outcome.
            ValueNotStorableError: When something in it could not be given back unchanged.
            StoreUnavailableError: When it is not durable and ``config.required`` is set.
        """
        return self._save(PREDICTIONS, self._completed(prediction, checkpoint_id, actual_outcome))

    async def save_prediction_async(
        self,
        prediction: FailurePrediction,
        checkpoint_id: str | None = None,
        actual_outcome: PredictionOutcome | str | None = None,
    ) -> str:
        """As :meth:`save_prediction`, without blocking the loop."""
        return await self._save_async(PREDICTIONS, self._completed(prediction, checkpoint_id, actual_outcome))

    def enqueue_prediction(
        self,
        prediction: FailurePrediction,
        checkpoint_id: str | None = None,
        actual_outcome: PredictionOutcome | str | None = None,
    ) -> str:
        """Queue a prediction; otherwise as :meth:`enqueue_checkpoint`."""
        return self._enqueue(PREDICTIONS, self._completed(prediction, checkpoint_id, actual_outcome))

    def update_prediction_outcome(
        self, prediction_id: str, actual_outcome: PredictionOutcome | str, *, resolved_at: float | None = None
    ) -> None:
        """Say what became of a prediction; durable when the call returns.

        ``OPEN`` takes an outcome back. Only outcome and time change, whatever another process changed meanwhile.

        Args:
            prediction_id: Which.
            actual_outcome: What became of it, as a member or its name.
            resolved_at: Unix seconds at which that was known; by default now.

        Raises:
            RecordNotFoundError: When there is no such prediction (also when it has expired).
            ConfigurationError: When there is no such outcome.
            StoreUnavailableError: When the store cannot be read, or the outcome is not durable and
                ``config.required`` is set.
        """
        self._save_item(self._outcome_of(prediction_id, actual_outcome, resolved_at))

    update_prediction_outcome_async = in_thread(update_prediction_outcome)

    def enqueue_prediction_outcome(
        self,
        prediction_id: str,
        actual_outcome: PredictionOutcome | str,
        *,
        resolved_at: float | None = None,
        prediction: FailurePrediction | None = None,
    ) -> None:
        """As :meth:`update_prediction_outcome`, without waiting for the commit.

        Args:
            prediction_id: Which.
            actual_outcome: What became of it, as a member or its name.
            resolved_at: Unix seconds at which that was known; by default now.
            prediction: The prediction, when the caller has it: then it is not looked up, so that nothing is read. An
                outcome that somebody has stored meanwhile stays then.
        """
        if prediction is None:
            self._queue(self._outcome_of(prediction_id, actual_outcome, resolved_at))
            return
        outcome = _outcome_named(actual_outcome)
        at = self._now() if resolved_at is None else checked_time(resolved_at, "resolved_at")
        item = self._item(PREDICTIONS, dataclasses.replace(prediction, outcome=outcome, resolved_at=at), self._shown)

        def resolve(stored: Row | None) -> Row:
            if stored is None or not is_intact(PREDICTIONS, stored):
                return item.row
            if PREDICTIONS.value_of(stored, "outcome") is not PredictionOutcome.OPEN:
                return {name: stored[name] for name in item.row}
            return PREDICTIONS.edited(stored, outcome=outcome, resolved_at=at)

        item.change = resolve
        self._queue(item)

    def get_predictions(
        self,
        failure_type: str | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
        limit: int | None = 100,
        *,
        target: str | None = None,
        outcome: PredictionOutcome | str | None = None,
    ) -> list[FailurePrediction]:
        """The newest predictions that pass the filters, newest first; times are inclusive."""
        wanted = PREDICTIONS.wanted(failure_type=failure_type, outcome=outcome)
        return self._records(PREDICTIONS, wanted, start_time, end_time, limit, target)

    get_predictions_async = in_thread(get_predictions)

    def get_prediction_scores(
        self,
        failure_type: str | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
        *,
        target: str | None = None,
    ) -> list[PredictionScore]:
        """Daily counts of all predictions, those that have expired included, oldest day first.

        Args:
            failure_type: Only predictions of this type.
            start_time: Unix seconds; its whole UTC day is included.
            end_time: Likewise.
            target: Only predictions for this server.
        """
        kind, only = checked_filter(failure_type, "failure_type"), checked_filter(target, "target")
        first, last = checked_time(start_time, "start_time"), checked_time(end_time, "end_time")

        def ask(memory: Batch, connection: Connection | None, _: SeriesCatalogue) -> list[PredictionScore]:
            scores, damaged = read_scores(memory, connection, failure_type=kind, start=first, end=last, target=only)
            self._count_damage(damaged)
            return scores

        return self._look(ask)

    get_prediction_scores_async = in_thread(get_prediction_scores)

    def save_failure_pattern(self, pattern: FailurePattern) -> str:
        """Save a failure pattern; otherwise as :meth:`save_checkpoint`."""
        return self._save(PATTERNS, pattern)

    async def save_failure_pattern_async(self, pattern: FailurePattern) -> str:
        """As :meth:`save_failure_pattern`, without blocking the loop."""
        return await self._save_async(PATTERNS, pattern)

    def enqueue_failure_pattern(self, pattern: FailurePattern) -> str:
        """Queue a failure pattern; otherwise as :meth:`enqueue_checkpoint`."""
        return self._enqueue(PATTERNS, pattern)

    def get_failure_patterns(
        self,
        failure_type: str | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
        limit: int | None = 100,
        *,
        target: str | None = None,
    ) -> list[FailurePattern]:
        """The failure patterns that pass the filters, those first seen last in front; times are inclusive."""
        wanted = PATTERNS.wanted(failure_type=failure_type)
        return self._records(PATTERNS, wanted, start_time, end_time, limit, target)

    get_failure_patterns_async = in_thread(get_failure_patterns)

    def _completed(
        self,
        prediction: FailurePrediction,
        checkpoint_id: str | None,
        actual_outcome: PredictionOutcome | str | None,
    ) -> FailurePrediction:
        if checkpoint_id is not None:
            prediction = dataclasses.replace(prediction, checkpoint_id=checkpoint_id)
        if actual_outcome is None:
            return prediction
        outcome = _outcome_named(actual_outcome)
        resolved_at = prediction.resolved_at
        if resolved_at is None and outcome is not PredictionOutcome.OPEN:
            resolved_at = self._now()
        return dataclasses.replace(prediction, outcome=outcome, resolved_at=resolved_at)

    def _outcome_of(
        self, prediction_id: str, actual_outcome: PredictionOutcome | str, resolved_at: float | None
    ) -> RareItem:
        outcome = _outcome_named(actual_outcome)
        at = checked_time(resolved_at, "resolved_at")
        if outcome is PredictionOutcome.OPEN:
            at = None
        elif at is None:
            at = self._now()

        def resolve(row: Row) -> Row:
            return PREDICTIONS.edited(row, outcome=outcome, resolved_at=at)

        return self._change_of(PREDICTIONS, prediction_id, resolve)


def _outcome_named(outcome: PredictionOutcome | str) -> PredictionOutcome:
    if isinstance(outcome, str):  # a member is one as well
        for member in PredictionOutcome:
            if member.value == outcome.lower():
                return member
    names = ", ".join(member.name for member in PredictionOutcome)
    raise ConfigurationError(f"{shown(outcome)} is no outcome of a prediction", hint=f"Pass one of {names}.")
