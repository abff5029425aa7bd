"""Cause-specific hazards in discrete time: from detector outputs to how likely each failure is, and when.

The five minutes ahead are cut into bins; in each, the chance that a failure of one type happens, given that it has not
yet, is the logistic function of a weighted sum (Singer and Willett, "It's about time: using discrete-time survival
analysis", Journal of Educational Statistics 18, 1993) of detector outputs and of a few fixed combinations of them
(one layer of rectified units, which say "both at once"). Weights are shipped and are moved by what happens here: a look
is kept until it is known what followed it, and then the weights of the sum take one step (stochastic gradient), drawn
back to the shipped ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.predictive_failure_detection.plain_state import array_of

__all__ = [
    "ANY_FAILURE",
    "EDGES_SECONDS",
    "HORIZON_SECONDS",
    "Forecast",
    "Hazards",
    "Weights",
    "forecast_of",
    "logit",
    "may_speak",
    "shipped_weights",
]

Floats = NDArray[np.float64]

ANY_FAILURE = "any_failure"
"""Stands among failure types for the first failure of whatever type; never predicted by itself."""
EDGES_SECONDS = (0.0, 15.0, 45.0, 100.0, 180.0, 300.0)
"""Ends of the bins: short ones where seconds count."""
HORIZON_SECONDS = EDGES_SECONDS[-1]
LEARNING_RATE = 0.05
"""Most by which one look moves the logarithm of its own odds (normalised steps)."""
PULL = 0.002
"""Share by which weights go back to the shipped ones with each step."""
MOST_LOGIT = 9.0
EXPERIENCE_ENDINGS = ("_looks_alike", "_from_here")
"""How detector outputs end that come from what preceded earlier failures of the type they are named after."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Shipped weights.

    Args:
        version: Names them, for ``FailurePrediction.model_version``.
        outputs: Names of the detector outputs that they are for.
        failure_types: Types that can be predicted.
        units: (outputs, units): what each combination is made of.
        unit_bias: (units,).
        bias: (types, bins).
        slope: (types, bins, outputs + units).
        thresholds: (types,): probability from which a failure is predicted.
    """

    version: str
    outputs: tuple[str, ...]
    failure_types: tuple[str, ...]
    units: Floats
    unit_bias: Floats
    bias: Floats
    slope: Floats
    thresholds: Floats

    def terms(self, outputs: Floats) -> Floats:
        """What the sums are of: the detector outputs, and their combinations after them."""
        return np.concatenate([outputs, np.maximum(outputs @ self.units + self.unit_bias, 0.0)])


def may_speak(outputs: Sequence[str], failure_types: Sequence[str]) -> NDArray[np.bool_]:
    """(types, outputs): of which failures a detector output may say something.

    What was learned from earlier failures of one type says something of that type alone: else two deaths of an engine
    make a full queue likely, too.
    """
    of = np.array([_experience_of(name) for name in outputs])
    kinds = np.array(failure_types)[:, None]
    return np.asarray((of == "") | (of == kinds) | (kinds == ANY_FAILURE))


def _experience_of(output: str) -> str:
    """The failure type from whose past an output comes; empty when it comes from what is seen now."""
    for ending in EXPERIENCE_ENDINGS:
        if output.endswith(ending):
            return output.removesuffix(ending)
    return ""


@dataclass(frozen=True, slots=True)
class Forecast:
    """How likely one failure is.

    Args:
        failure_type: What.
        probability: That it happens within :data:`HORIZON_SECONDS`, 0 to 1.
        seconds: Median time to it, if it happens within the horizon.
        seconds_low: A tenth of them come earlier.
        seconds_high: A tenth of them come later.
    """

    failure_type: str
    probability: float
    seconds: float
    seconds_low: float
    seconds_high: float


@cache
def shipped_weights() -> Weights:
    """The weights of the package."""
    kept = json.loads(resources.files(__package__).joinpath("starting_weights.json").read_text("utf-8"))
    return Weights(
        kept["version"],
        tuple(kept["outputs"]),
        tuple(kept["failure_types"]),
        *(np.array(kept[name]) for name in ("units", "unit_bias", "bias", "slope", "thresholds")),
    )


class Hazards:
    """The hazards of one server. Not thread-safe.

    Args:
        weights: Where to begin.
    """

    def __init__(self, weights: Weights | None = None) -> None:
        self.shipped = weights if weights is not None else shipped_weights()
        self._bias = self.shipped.bias.copy()
        self._slope = self.shipped.slope.copy()
        speaks = may_speak(self.shipped.outputs, self.shipped.failure_types)
        units = np.ones((len(speaks), self.shipped.units.shape[1]), dtype=bool)
        self._speaks = np.concatenate([speaks, units], axis=1)

    def hazards(self, terms: Floats) -> Floats:
        """(types, bins): chance of each failure in each bin, given that it has not happened before.

        Args:
            terms: As :meth:`Weights.terms` gives them.
        """
        logits = np.clip(self._bias + self._slope @ terms, -MOST_LOGIT, MOST_LOGIT)
        return np.asarray(1.0 / (1.0 + np.exp(-logits)))

    def mean_slope(self, kind: int) -> Floats:
        """Slope of one failure type, (outputs + units,), as the mean over the bins."""
        return np.asarray(self._slope[kind].mean(axis=0))

    def learn(self, terms: Floats, kind: int, seconds: float | None) -> None:
        """Take one step towards what followed a look.

        Args:
            terms: The look.
            kind: Number of the failure type.
            seconds: Time to the failure; ``None`` when it did not happen within the horizon.
        """
        chance = self.hazards(terms)[kind]
        bins = len(EDGES_SECONDS) - 1
        hit = bins if seconds is None else bisect_bin(seconds)
        rate = LEARNING_RATE / (1.0 + float(terms @ terms))
        for place in range(min(hit + 1, bins)):
            error = float(place == hit) - chance[place]
            self._bias[kind, place] += rate * error
            self._slope[kind, place] += rate * error * terms * self._speaks[kind]
        self._bias[kind] += PULL * (self.shipped.bias[kind] - self._bias[kind])
        self._slope[kind] += PULL * (self.shipped.slope[kind] - self._slope[kind])

    def state(self) -> dict[str, Any]:
        """How far the weights have moved from the shipped ones."""
        return {
            "version": self.shipped.version,
            "bias": self._bias - self.shipped.bias,
            "slope": self._slope - self.shipped.slope,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; one that was learned upon other weights is left out."""
        bias, slope = array_of(state.get("bias"), self._bias.shape), array_of(state.get("slope"), self._slope.shape)
        if state.get("version") == self.shipped.version and bias is not None and slope is not None:
            self._bias, self._slope = self.shipped.bias + bias, self.shipped.slope + slope


def bisect_bin(seconds: float) -> int:
    """The bin in which a time to failure lies; the number of bins when it is beyond the horizon."""
    for place, edge in enumerate(EDGES_SECONDS[1:]):
        if seconds <= edge:
            return place
    return len(EDGES_SECONDS) - 1


def forecast_of(failure_type: str, hazards: Floats, probability: float | None = None) -> Forecast:
    """What hazards amount to.

    Args:
        failure_type: What fails.
        hazards: Chance in each bin, given that it has not happened before.
        probability: A recalibrated one to be given instead; how it is spread over time stays.
    """
    alive = np.concatenate([[1.0], np.cumprod(1.0 - hazards)])
    within = 1.0 - alive[-1]
    reached = (1.0 - alive) / within if within > 0 else np.linspace(0.0, 1.0, len(EDGES_SECONDS))
    low, middle, high = (float(np.interp(share, reached, EDGES_SECONDS)) for share in (0.1, 0.5, 0.9))
    return Forecast(failure_type, float(within) if probability is None else probability, middle, low, high)


def logit(probability: float) -> float:
    """Logarithm of the odds, bounded."""
    bounded = min(max(probability, 1e-6), 1.0 - 1e-6)
    return math.log(bounded / (1.0 - bounded))
