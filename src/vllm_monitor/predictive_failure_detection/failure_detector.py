"""``PredictiveFailureDetector``: the predictors of all servers, and what they have learned, kept in the store."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence

from vllm_monitor.errors import RecordNotFoundError, StorageError
from vllm_monitor.failures import Episode
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.picture import Snapshot
from vllm_monitor.predictive_failure_detection.hazards import Weights
from vllm_monitor.predictive_failure_detection.plain_state import number_of
from vllm_monitor.predictive_failure_detection.settings import PredictionSettings
from vllm_monitor.predictive_failure_detection.target_predictor import Outlook, TargetPredictor
from vllm_monitor.records import (
    Condition,
    FailurePrediction,
    PageObservation,
    PredictionOutcome,
    StateCheckpoint,
)

__all__ = ["PredictiveFailureDetector", "model_name_of"]

_LOG = logging.getLogger(__name__)

MOST_CHECKPOINT_TARGETS = 100
"""Of more servers' checkpoints the first ones are forgotten."""
_RESOLVED = (PredictionOutcome.HAPPENED, PredictionOutcome.DID_NOT_HAPPEN)


def model_name_of(target: str) -> str:
    """The name under which the store keeps what was learned of a server."""
    return f"prediction/{target}"


class PredictiveFailureDetector:
    """Predicts failures of any number of servers, and remembers what it has learned of each.

    :meth:`observe` belongs to the owner of the watch; every other method may be called from any thread.

    Args:
        settings: What an operator may set.
        persistence_manager: The store; ``None`` keeps nothing.
        weights: Where hazards begin; by default those of the package.
    """

    def __init__(
        self,
        settings: PredictionSettings | None = None,
        persistence_manager: PersistenceManager | None = None,
        *,
        weights: Weights | None = None,
    ) -> None:
        self.settings = settings if settings is not None else PredictionSettings()
        self._store = persistence_manager
        self._weights = weights
        self._lock = threading.RLock()
        self._live: dict[str, TargetPredictor] = {}
        self._of_checkpoints: dict[str, TargetPredictor] = {}

    def observe(
        self,
        snapshot: Snapshot,
        page: PageObservation | None = None,
        failures: Sequence[Episode] = (),
        ongoing: Sequence[Episode] = (),
    ) -> list[FailurePrediction]:
        """One tick of one server.

        Args:
            snapshot: Its picture.
            page: Its newest page; not used yet.
            failures: Failures that have happened with this tick, or are over.
            ongoing: Failures that go on.

        Returns:
            New predictions; storing them is the caller's.
        """
        del page
        happened = [one.failure_type for one in failures if one.ended_at is None]
        with self._lock:
            return self._predictor(snapshot.target).observe(snapshot, happened, ongoing)

    def analyze_checkpoint(self, checkpoint: StateCheckpoint) -> list[FailurePrediction]:
        """What a checkpoint, after those given before it, lets expect.

        Checkpoints of a server are to be given in the order of their times; slopes come from the ones before. What
        was learned of the server live, or kept in the store, is where it begins. Nothing is stored, and neither
        debounce nor budget holds anything back.

        Args:
            checkpoint: Its ``metrics`` are canonical figures (docs/metrics.md).

        Returns:
            A prediction for each failure that is likely enough, most likely first.
        """
        with self._lock:
            predictor = self._of_checkpoints.get(checkpoint.target)
            if predictor is None:
                predictor = self._new(checkpoint.target)
                live = self._live.get(checkpoint.target)
                if live is not None:
                    predictor.restore(live.state())
                else:
                    self._restore(predictor)
                while len(self._of_checkpoints) >= MOST_CHECKPOINT_TARGETS:
                    del self._of_checkpoints[next(iter(self._of_checkpoints))]
                self._of_checkpoints[checkpoint.target] = predictor
            found = predictor.observe(_picture_of(checkpoint), guarded=False)
        return sorted(found, key=lambda one: -one.probability)

    def outlook(self, target: str) -> Outlook:
        """How the next five minutes of a server look, or why nothing is said of them."""
        with self._lock:
            predictor = self._live.get(target)
            return Outlook(abstains="it is not watched") if predictor is None else predictor.outlook

    def suppressed(self, target: str) -> Mapping[str, int]:
        """Predictions that the daily budget held back, by failure type."""
        with self._lock:
            predictor = self._live.get(target)
            return {} if predictor is None else dict(predictor.suppressed)

    def note_resolved(self, prediction: FailurePrediction, outcome: PredictionOutcome) -> None:
        """A prediction was resolved; twenty of a type make its probabilities calibrated."""
        if outcome in _RESOLVED:
            with self._lock:
                resolved = self._predictor(prediction.target).resolved
                resolved[prediction.failure_type] = resolved.get(prediction.failure_type, 0) + 1

    def note_action(self, target: str) -> None:
        """Somebody acts on a server: nothing is learned from what follows."""
        with self._lock:
            self._predictor(target).note_action()

    def resume(self, target: str) -> None:
        """Take up what the store holds of a server: what was learned, what was predicted, how often it was resolved."""
        predictor = self._new(target)
        self._restore(predictor)
        store = self._store
        if store is not None:
            try:
                rows = store.get_predictions(limit=None, target=target)
                own = [one for one in reversed(rows) if "plugin" not in one.metadata]  # oldest first
                for one in own[-self.settings.daily_budget :] if self.settings.daily_budget else ():
                    predictor.note_prediction(one.failure_type, one.timestamp)
                # The state may be older than the newest rows, and old rows may have expired: neither has too many.
                counts = Counter(one.failure_type for one in own if one.outcome in _RESOLVED)
                for kind, count in counts.items():
                    predictor.resolved[kind] = max(count, predictor.resolved.get(kind, 0))
            except StorageError as error:
                _LOG.warning("what was predicted of %s before cannot be read: %s", target, error)
        with self._lock:
            self._live[target] = predictor

    def save(self, target: str) -> None:
        """Store what was learned of a server. Blocks; a store that cannot take it is logged."""
        store = self._store
        with self._lock:
            predictor = self._live.get(target)
            if store is None or predictor is None:
                return
            state, patterns = predictor.state(), predictor.patterns()
        try:
            store.save_model(model_name_of(target), state, {"target": target})
            for pattern in patterns:
                store.enqueue_failure_pattern(pattern)
        except StorageError as error:
            _LOG.warning("what was learned of %s cannot be stored: %s", target, error)

    def forget(self, target: str) -> None:
        """A server is not watched any more: what was learned of it stays in the store alone."""
        with self._lock:
            self._live.pop(target, None)
            self._of_checkpoints.pop(target, None)

    def _predictor(self, target: str) -> TargetPredictor:
        if target not in self._live:
            self._live[target] = self._new(target)
        return self._live[target]

    def _new(self, target: str) -> TargetPredictor:
        return TargetPredictor(target, self.settings, self._weights)

    def _restore(self, predictor: TargetPredictor) -> None:
        if self._store is None:
            return
        name = model_name_of(predictor.target)
        try:
            state, _ = self._store.load_model(name)
        except RecordNotFoundError:
            return  # it was never watched before
        except StorageError as error:
            _LOG.warning("what was learned of %s cannot be read: %s", predictor.target, error)
            return
        if isinstance(state, Mapping):
            predictor.restore(state)


def _picture_of(checkpoint: StateCheckpoint) -> Snapshot:
    known = ((name, number_of(value)) for name, value in checkpoint.metrics.items())
    figures = {name: number for name, number in known if number is not None}
    return Snapshot(
        target=checkpoint.target,
        timestamp=checkpoint.timestamp,
        state=checkpoint.state,
        condition=checkpoint.condition if checkpoint.condition is not None else Condition.OK,
        reason=checkpoint.reason,
        condition_since=checkpoint.timestamp,
        values=figures,
        scraped_at=checkpoint.timestamp,
    )
