"""The methods that predictions are measured against, each as an operator would set it up, and how alarms are counted.

Each method gives, for each tick of a run, a score that grows with the danger, and a probability that a failure begins
within five minutes. Nothing of a run is known to it but what was visible by then.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.isotonic import IsotonicRegression

from prediction_runs import PRECURSOR_KINDS, TICK_SECONDS
from vllm_monitor.predictive_failure_detection.features import SIGNALS

__all__ = [
    "HORIZON_SECONDS",
    "Judged",
    "LinearRule",
    "Scored",
    "Seen",
    "boosted",
    "predict_linear",
    "score",
    "stepwise",
    "threshold_for",
    "thresholds",
    "z_score",
]

Floats = NDArray[np.float64]

HORIZON_SECONDS = 300.0
HOLD_DOWN_SECONDS = 300.0
SETTLE_SECONDS = 60.0
"""After a failure nothing is asked of anybody for so long."""
SAME_INCIDENT_SECONDS = 180.0
WARM_UP_SECONDS = 600.0
_COLUMN = {name: place for place, name in enumerate(SIGNALS)}


@dataclass(slots=True)
class Seen:
    """One run as a method sees it, and the truth.

    Args:
        times: Unix seconds of the ticks.
        levels: (ticks, signals): figures of the picture, NaN where not known.
        onsets: Unix seconds at which an incident began, and its kind (``unplanned`` when nobody planned it).
        valid: Ticks that count: the server answers, and no incident goes on.
        ours: Probability of any failure by ours.
        ours_seconds: Its median time to failure.
        ours_made: Ticks at which ours, as shipped, made a prediction.
    """

    times: Floats
    levels: Floats
    onsets: list[tuple[float, str]]
    valid: NDArray[np.bool_]
    ours: Floats
    ours_seconds: Floats
    ours_made: NDArray[np.bool_]

    def seconds_left(self) -> Floats:
        """Seconds from each tick to the next onset; infinite when there is none."""
        left = np.full(len(self.times), math.inf)
        for at, _ in self.onsets:
            before = self.times < at
            left[before] = np.minimum(left[before], at - self.times[before])
        return left


@dataclass(slots=True)
class Judged:
    """What a method says of a run.

    Args:
        scores: Grows with the danger.
        probabilities: That a failure begins within five minutes.
        seconds: Time to failure, NaN where the method has no opinion.
    """

    scores: Floats
    probabilities: Floats
    seconds: Floats


@dataclass(slots=True)
class Scored:
    """Figures of a method over some runs."""

    recall: float
    precision: float
    false_alarms_per_day: float
    lead_seconds: float
    brier_skill: float
    ece: float
    ttf_error_seconds: float
    recall_by_kind: dict[str, float] = field(default_factory=dict)
    events: int = 0


def alarms(scores: Floats, threshold: float, valid: NDArray[np.bool_]) -> Iterator[int]:
    """Ticks at which an alarm is raised: two of three looks, not again for five minutes. The same for all methods."""
    over = (scores >= threshold) & valid
    last = -math.inf
    for tick in np.flatnonzero(over).tolist():
        if over[max(0, tick - 2) : tick + 1].sum() >= 2 and (tick - last) * TICK_SECONDS >= HOLD_DOWN_SECONDS:
            last = tick
            yield tick


def score(runs: Sequence[Seen], judged: Sequence[Judged], threshold: float, base_rate: float) -> Scored:
    """All figures of a method at a threshold."""
    hits: dict[str, list[float]] = {}
    true, false, seconds_watched = 0, 0, 0.0
    errors, leads = [], []
    for run, said in zip(runs, judged, strict=True):
        raised = list(alarms(said.scores, threshold, run.valid))
        left = run.seconds_left()
        seconds_watched += float(run.valid.sum()) * TICK_SECONDS
        for tick in raised:
            if left[tick] <= HORIZON_SECONDS:
                true += 1
                if math.isfinite(said.seconds[tick]):
                    errors.append(abs(float(said.seconds[tick]) - float(left[tick])))
            else:
                false += 1
        for at, kind in run.onsets:
            ahead = [at - run.times[tick] for tick in raised if 0 < at - run.times[tick] <= HORIZON_SECONDS]
            hits.setdefault(kind, []).append(max(ahead, default=0.0))
    for kind in PRECURSOR_KINDS:
        leads += [lead for lead in hits.get(kind, []) if lead > 0]
    planned = [lead for kind in PRECURSOR_KINDS for lead in hits.get(kind, [])]
    valid = np.concatenate([run.valid for run in runs])
    happens = np.concatenate([run.seconds_left() <= HORIZON_SECONDS for run in runs])[valid]
    probability = np.concatenate([said.probabilities for said in judged])[valid]
    brier = float(np.mean((probability - happens) ** 2))
    reference = float(np.mean((base_rate - happens) ** 2))
    return Scored(
        recall=float(np.mean([lead > 0 for lead in planned])),
        precision=true / max(1, true + false),
        false_alarms_per_day=false / (seconds_watched / 86_400.0),
        lead_seconds=float(np.median(leads)) if leads else 0.0,
        brier_skill=1.0 - brier / reference,
        ece=expected_calibration_error(probability, happens),
        ttf_error_seconds=float(np.median(errors)) if errors else math.nan,
        recall_by_kind={kind: float(np.mean([lead > 0 for lead in found])) for kind, found in sorted(hits.items())},
        events=len(planned),
    )


def expected_calibration_error(probability: Floats, happens: NDArray[np.bool_]) -> float:
    """Mean distance of stated from seen frequency over ten bins of equal width, weighted by their counts."""
    bins = np.minimum((probability * 10).astype(int), 9)
    total = 0.0
    for number in range(10):
        inside = bins == number
        if inside.any():
            total += float(inside.mean()) * abs(float(probability[inside].mean()) - float(happens[inside].mean()))
    return total


def threshold_for(runs: Sequence[Seen], judged: Sequence[Judged], false_alarms_per_day: float) -> float:
    """The lowest threshold at which a method raises no more false alarms a day than that."""
    everything = np.concatenate([said.scores[run.valid] for run, said in zip(runs, judged, strict=True)])
    grid = np.unique(np.quantile(everything, np.concatenate([np.linspace(0.5, 0.99, 50), np.linspace(0.99, 1.0, 60)])))
    days = sum(float(run.valid.sum()) for run in runs) * TICK_SECONDS / 86_400.0
    best = float(grid[-1]) + 1e-9
    for threshold in grid[::-1].tolist():
        false = 0
        for run, said in zip(runs, judged, strict=True):
            left = run.seconds_left()
            false += sum(left[tick] > HORIZON_SECONDS for tick in alarms(said.scores, threshold, run.valid))
        if false / days > false_alarms_per_day:
            break
        best = threshold
    return best


def stepwise(runs: Sequence[Seen], judged: Sequence[Judged], threshold: float) -> tuple[float, float]:
    """How often a failure follows when the score is below, and when it is above the threshold."""
    valid = np.concatenate([run.valid for run in runs])
    happens = np.concatenate([run.seconds_left() <= HORIZON_SECONDS for run in runs])[valid]
    over = np.concatenate([said.scores for said in judged])[valid] >= threshold
    return float(happens[~over].mean()), float(happens[over].mean()) if over.any() else 1.0


# -- thresholds, z-score, predict_linear -------------------------------------------------------------------------


def thresholds(run: Seen) -> Floats:
    """The usual alert rules: how far any figure is on the way to its threshold."""
    rules = {
        "requests_waiting": 20.0,
        "kv_cache_usage_ratio": 0.95,
        "time_to_first_token_p95_seconds": 2.0,
        "inter_token_latency_p95_seconds": 0.2,
        "request_queue_time_p95_seconds": 2.0,
        "api_resident_memory_bytes": 8e9,
        "preemptions_per_second": 1.0,
    }
    shares = [np.nan_to_num(run.levels[:, _COLUMN[name]]) / limit for name, limit in rules.items()]
    return np.asarray(np.max(np.array(shares), axis=0))


def z_score(run: Seen) -> Floats:
    """The largest distance of any figure from its moving average of an hour, in moving standard deviations."""
    names = [
        "requests_running",
        "requests_waiting",
        "kv_cache_usage_ratio",
        "time_to_first_token_p95_seconds",
        "inter_token_latency_p95_seconds",
        "request_queue_time_p95_seconds",
        "api_resident_memory_bytes",
        "http_requests_per_second",
    ]
    values = run.levels[:, [_COLUMN[name] for name in names]]
    share = TICK_SECONDS / 3_600.0
    mean, square = np.nan_to_num(values[0]), np.nan_to_num(values[0]) ** 2
    found = np.zeros(len(values))
    for tick, row in enumerate(values):
        known = np.isfinite(row)
        spread = np.sqrt(np.maximum(square - mean**2, 0.0))
        floor = np.maximum(0.02 * np.abs(mean), 1e-3)
        z = np.where(known, (np.nan_to_num(row) - mean) / np.maximum(spread, floor), 0.0)
        found[tick] = min(50.0, float(z.max()))
        weight = max(share, 1.0 / (tick + 1)) * known
        mean = mean + weight * (np.nan_to_num(row) - mean)
        square = square + weight * (np.nan_to_num(row) ** 2 - square)
    return found


@dataclass(frozen=True, slots=True)
class LinearRule:
    """``predict_linear(x[window], 300) > limit`` over the figures that have one.

    Args:
        window_seconds: Of the regression.
        waiting: Limit of waiting requests.
        memory_bytes: Limit of memory: nobody knows the real one.
    """

    window_seconds: float
    waiting: float
    memory_bytes: float

    @classmethod
    def grid(cls) -> list[LinearRule]:
        """Rules to choose from, on the validation runs."""
        return [cls(*one) for one in product((60.0, 300.0, 900.0), (20.0, 50.0), (2.5e9, 4e9, 8e9))]


def predict_linear(run: Seen, rule: LinearRule) -> Judged:
    """1 where any rule holds, and the time to the first limit."""
    limits = {
        "requests_waiting": rule.waiting,
        "kv_cache_usage_ratio": 0.95,
        "api_resident_memory_bytes": rule.memory_bytes,
        "time_to_first_token_p95_seconds": 2.0,
    }
    count = int(rule.window_seconds / TICK_SECONDS)
    fires, seconds = np.zeros(len(run.times)), np.full(len(run.times), math.inf)
    at = np.arange(count) * TICK_SECONDS
    centred = at - at.mean()
    for name, limit in limits.items():
        values = run.levels[:, _COLUMN[name]]
        windows = np.lib.stride_tricks.sliding_window_view(values, count)
        slope = (windows @ centred) / (centred @ centred)
        value = windows.mean(axis=1) + slope * (at[-1] - at.mean())
        with np.errstate(invalid="ignore", divide="ignore"):
            there = np.where(slope > 0, (limit - value) / slope, np.where(value >= limit, 0.0, math.inf))
            holds = value + slope * HORIZON_SECONDS > limit
        fires[count - 1 :] = np.maximum(fires[count - 1 :], np.nan_to_num(holds.astype(float)))
        seconds[count - 1 :] = np.fmin(seconds[count - 1 :], np.maximum(there, 0.0))
    return Judged(fires, fires, np.where(fires > 0, np.minimum(seconds, HORIZON_SECONDS), math.nan))


# -- gradient boosting -------------------------------------------------------------------------------------------


def boosting_features(run: Seen) -> Floats:
    """The figures, and what they changed by in half a minute and in two."""
    parts = [run.levels]
    for ticks in (6, 24):
        change = np.full_like(run.levels, np.nan)
        change[ticks:] = run.levels[ticks:] - run.levels[:-ticks]
        parts.append(change)
    return np.nan_to_num(np.concatenate(parts, axis=1), nan=-1.0)


def boosted(train: Sequence[Seen], validate: Sequence[Seen], runs: Sequence[Seen]) -> list[list[Judged]]:
    """Gradient boosting (scikit-learn's histogram one) with isotonic calibration, judging each group of runs."""

    def stacked(group: Sequence[Seen]) -> tuple[Floats, Floats]:
        return (
            np.concatenate([boosting_features(run)[run.valid] for run in group]),
            np.concatenate([run.seconds_left()[run.valid] for run in group]),
        )

    features, left = stacked(train)
    model: Any = HistGradientBoostingClassifier(
        max_iter=200, learning_rate=0.06, max_leaf_nodes=15, l2_regularization=1.0, random_state=0
    ).fit(features, left <= HORIZON_SECONDS)
    when: Any = HistGradientBoostingRegressor(
        max_iter=100, max_leaf_nodes=15, loss="absolute_error", random_state=0
    ).fit(features[left <= HORIZON_SECONDS], left[left <= HORIZON_SECONDS])
    held_out, held_out_left = stacked(validate)
    isotonic: Any = IsotonicRegression(out_of_bounds="clip", y_min=0.0, y_max=1.0).fit(
        model.predict_proba(held_out)[:, 1], held_out_left <= HORIZON_SECONDS
    )

    def judge(run: Seen) -> Judged:
        found = boosting_features(run)
        raw = model.predict_proba(found)[:, 1]
        return Judged(raw, isotonic.predict(raw), np.clip(when.predict(found), 0.0, HORIZON_SECONDS))

    return [[judge(run) for run in group] for group in (validate, runs)]
