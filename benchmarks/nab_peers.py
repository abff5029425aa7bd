"""Detectors that the anomaly benchmark measures beside ours: from row to score, one at a time."""

from __future__ import annotations

import math
import random

import numpy as np
from numpy.typing import NDArray

from nab_scoring import LabelledSeries

Floats = NDArray[np.float64]

WINDOW_ROWS = 6400
STEP_ROWS = 100
LEAST_DEVIATION = 1e-6


def windowed_gaussian(series: LabelledSeries) -> Floats:
    """One less the Gaussian tail of a value in a window of 6400 rows that moves on by 100.

    The rule and both numbers are those of the detector of that name which NAB ships. Its published score is 39.6, so
    what comes out here also says whether our scoring is NAB's.
    """
    scores = np.zeros(len(series.values))
    window: list[float] = []
    arrived: list[float] = []
    mean = squares = 0.0
    deviation = LEAST_DEVIATION
    for row, value in enumerate(series.values.tolist()):
        if window:
            scores[row] = 1.0 - 0.5 * math.erfc(abs(value - mean) / deviation / math.sqrt(2.0))
        if len(window) < WINDOW_ROWS:
            window.append(value)
            moved = value - mean
            mean += moved / len(window)
            squares += moved * (value - mean)
            deviation = math.sqrt(squares / len(window)) or LEAST_DEVIATION
            continue
        arrived.append(value)
        if len(arrived) == STEP_ROWS:
            window, arrived = window[STEP_ROWS:] + arrived, []
            mean, deviation = float(np.mean(window)), float(np.std(window)) or LEAST_DEVIATION
    return scores


def random_scores(series: LabelledSeries, seed: int) -> Floats:
    """Uniform noise, whatever the values."""
    generator = random.Random(f"{seed} {series.name}")
    return np.array([generator.random() for _ in series.values])
