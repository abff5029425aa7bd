"""What an operator may set of predictions."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PredictionSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionSettings:
    """Settings of predictions.

    Args:
        least_probability: No failure is predicted below it, 0 to 1; ``None`` takes the shipped thresholds, one for
            each failure type.
        hold_down_seconds: Least time between two predictions of one failure type for one server.
        daily_budget: Most predictions for one server in 24 hours.
        ttft_objective_seconds: Longest time to first token that is still good.
        inter_token_objective_seconds: Longest time between two tokens that is still good.
        learns: Whether weights and calibration follow what happens here.
    """

    least_probability: float | None = None
    hold_down_seconds: float = 300.0
    daily_budget: int = 48
    ttft_objective_seconds: float = 2.0
    inter_token_objective_seconds: float = 0.2
    learns: bool = True
