"""What predictions said against how often it came true: Brier score, calibration error, reliability.

References: Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78 (1950);
Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI (2015).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from vllm_monitor.records import PredictionOutcome, PredictionScore

__all__ = ["Calibration", "ReliabilityBin", "calibration_of"]

BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Predictions whose probability lies in one tenth, and how many of them came true.

    Args:
        low: Where the tenth begins, 0 to 0.9; inclusive.
        high: Where it ends, 0.1 to 1; exclusive but for the last.
        count: Resolved predictions in it, at least 1.
        happened: How many of them came true.
        mean_probability: Mean of what they said, 0 to 1.
        happened_ratio: The share that came true, 0 to 1.
    """

    low: float
    high: float
    count: int
    happened: int
    mean_probability: float
    happened_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How good probabilities were. Only predictions that happened or did not are in it.

    Args:
        count: Resolved predictions with a probability from 0 to 1.
        base_rate: The share of them that came true, 0 to 1; ``None`` when there are none.
        brier: Mean squared error, 0 (best) to 1; likewise.
        brier_skill: 1 is perfect, 0 as good as always saying the base rate, below that worse. ``None`` when all of
            them came true or none did, so that there is nothing to be better than.
        ece: Expected calibration error, 0 (best) to 1: what the bins are off by, weighted by their counts.
        bins: The tenths that are not empty, lowest first.
    """

    count: int
    base_rate: float | None
    brier: float | None
    brier_skill: float | None
    ece: float | None
    bins: tuple[ReliabilityBin, ...]


def calibration_of(counts: Iterable[PredictionScore]) -> Calibration:
    """Calibration of what some daily counts are of; from sums alone, never from means of means."""
    usable = [(one.calibration_bin, one.brier_sum, one) for one in counts if one.predictions > 0]
    resolved = [
        (tenth, brier_sum, one) for tenth, brier_sum, one in usable if tenth is not None and brier_sum is not None
    ]
    bins = []
    for tenth in range(BINS):
        inside = [one for number, _, one in resolved if number == tenth]
        count = sum(one.predictions for one in inside)
        if count == 0:
            continue
        happened = sum(one.predictions for one in inside if one.outcome is PredictionOutcome.HAPPENED)
        mean = math.fsum(one.probability_sum for one in inside) / count
        bins.append(
            ReliabilityBin(
                low=tenth / BINS,
                high=(tenth + 1) / BINS,
                count=count,
                happened=happened,
                mean_probability=mean,
                happened_ratio=happened / count,
            )
        )
    total = sum(one.count for one in bins)
    if total == 0:
        return Calibration(count=0, base_rate=None, brier=None, brier_skill=None, ece=None, bins=())
    base_rate = sum(one.happened for one in bins) / total
    brier = max(0.0, math.fsum(brier_sum for _, brier_sum, _ in resolved) / total)  # a rounding error below 0 is 0
    of_the_base_rate = base_rate * (1.0 - base_rate)
    return Calibration(
        count=total,
        base_rate=base_rate,
        brier=brier,
        brier_skill=1.0 - brier / of_the_base_rate if of_the_base_rate > 0.0 else None,
        ece=math.fsum(one.count * abs(one.mean_probability - one.happened_ratio) for one in bins) / total,
        bins=tuple(bins),
    )
