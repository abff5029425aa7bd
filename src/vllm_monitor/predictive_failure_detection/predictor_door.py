"""The door of whatever predicts: asked once per tick, and told what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vllm_monitor.failures import Episode
from vllm_monitor.picture import Snapshot
from vllm_monitor.records import FailurePrediction, PageObservation, PredictionOutcome

__all__ = ["Predictor"]


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
