"""The door of whatever predicts: asked once per tick, and told what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from vllm_monitor.failures import Episode
from vllm_monitor.picture import Snapshot
from vllm_monitor.predictive_failure_detection.target_predictor import Outlook
from vllm_monitor.records import FailurePrediction, PageObservation, PredictionOutcome

__all__ = ["Predictor", "Restrained"]


class Predictor(Protocol):
    """Predicts the failures of servers. Deterministic given what it is shown and told; one owner calls it."""

    def observe(
        self,
        snapshot: Snapshot,
        page: PageObservation | None,
        failures: Sequence[Episode],
        ongoing: Sequence[Episode],
    ) -> list[FailurePrediction]:
        """One tick.

        Args:
            snapshot: The picture as of the tick.
            page: The newest metrics page that came with it; ``None`` when none did.
            failures: Failures that have happened, or are over, with this tick.
            ongoing: Failures that go on after it.

        Returns:
            New predictions; each is stored and settled by the caller.
        """
        ...

    def note_resolved(self, prediction: FailurePrediction, outcome: PredictionOutcome) -> None:
        """It is known what became of one of its predictions."""
        ...

    def note_action(self, target: str) -> None:
        """Somebody acts on a server: what follows says nothing of what would have followed."""
        ...


@runtime_checkable
class Restrained(Protocol):
    """A predictor that can say why it says nothing."""

    def outlook(self, target: str) -> Outlook:
        """How the next minutes of a server look, or why nothing is said of them."""
        ...

    def suppressed(self, target: str) -> Mapping[str, int]:
        """Predictions that were held back, by failure type."""
        ...
