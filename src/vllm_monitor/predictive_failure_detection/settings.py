"""What an operator may set of predictions."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_monitor.errors import ConfigurationError

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

    Raises:
        ConfigurationError: When one of them makes no sense.
    """

    least_probability: float | None = None
    hold_down_seconds: float = 300.0
    daily_budget: int = 48
    ttft_objective_seconds: float = 2.0
    inter_token_objective_seconds: float = 0.2
    learns: bool = True

    def __post_init__(self) -> None:
        least, most = 0.0, 1e9
        figures = (self.hold_down_seconds, self.ttft_objective_seconds, self.inter_token_objective_seconds)
        if self.least_probability is not None and not 0.0 < self.least_probability < 1.0:
            raise ConfigurationError(
                f"a least probability of {self.least_probability!r}", hint="give one between 0 and 1, or None"
            )
        if self.daily_budget < 0 or not all(least <= one <= most for one in figures):
            raise ConfigurationError(
                "a budget, hold-down or objective below 0, or that is no number", hint="give numbers from 0 on"
            )
