"""Predictions for one server, tick by tick: features, detectors, hazards, flood guard, and what is learned of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.failures import Episode
from vllm_monitor.picture import Snapshot
from vllm_monitor.predictive_failure_detection.detectors import Detector, make_detectors
from vllm_monitor.predictive_failure_detection.detectors.precursor_patterns import PrecursorPatterns
from vllm_monitor.predictive_failure_detection.features import FeatureExtractor, Features
from vllm_monitor.predictive_failure_detection.flood_guard import FloodGuard
from vllm_monitor.predictive_failure_detection.hazards import (
    ANY_FAILURE,
    EXPERIENCE_ENDINGS,
    HORIZON_SECONDS,
    Forecast,
    Hazards,
    Weights,
    forecast_of,
    shipped_weights,
)
from vllm_monitor.predictive_failure_detection.late_labels import LateLabels
from vllm_monitor.predictive_failure_detection.plain_state import number_of
from vllm_monitor.predictive_failure_detection.recalibration import Recalibration
from vllm_monitor.predictive_failure_detection.rules import judge_by_rule
from vllm_monitor.predictive_failure_detection.settings import PredictionSettings
from vllm_monitor.predictive_failure_detection.wording import confidence_of, factors, mitigations_for, state_after
from vllm_monitor.records import Condition, FailurePattern, FailurePrediction

__all__ = ["TargetPredictor"]

LEAST_KNOWN_SECONDS = 20.0
"""Nothing is said of a server that was followed for less."""
STALE_SECONDS = 15.0
RECOVERY_SECONDS = 60.0
"""A failure that is over is not predicted again for so long: its traces look like its signs."""
LEAST_RESOLVED = 20
"""Resolved predictions of a type before its probabilities count as calibrated."""
LEAST_EXPERIENCE = 0.1
STATE_VERSION = 1
_STOPS = frozenset({"engine_stall", "engine_death", "worker_death", "api_death", "api_frozen"})
"""After these everything that waited comes at once, and it says nothing of what is to come."""
RULED_WHEN_STARVED = ("memory_exhaustion", "fd_exhaustion")
_AT_WORK = (Condition.OK, Condition.IDLE, Condition.SATURATED)
_WELL = (Condition.OK, Condition.IDLE)


@dataclass(frozen=True, slots=True)
class Outlook:
    """How the five minutes ahead look.

    Args:
        forecasts: One for each failure type that does not go on already.
        any_failure: Of the first failure of any type; ``None`` while one goes on.
        abstains: Why none is made; empty when they are.
    """

    forecasts: tuple[Forecast, ...] = ()
    any_failure: Forecast | None = None
    abstains: str = ""


class TargetPredictor:
    """Follows one server. Bounded; deterministic; not thread-safe: one owner.

    Args:
        target: The server's URL.
        settings: See there.
        weights: Where hazards begin; by default those of the package.
    """

    def __init__(self, target: str, settings: PredictionSettings | None = None, weights: Weights | None = None) -> None:
        self.target = target
        self.settings = settings if settings is not None else PredictionSettings()
        self.weights = weights if weights is not None else shipped_weights()
        self.outlook = Outlook(abstains="nothing was seen yet")
        self.resolved: dict[str, int] = {}
        self._failing: dict[str, float] = {}
        self._kinds = self.weights.failure_types
        self._features = FeatureExtractor()
        self._detectors: tuple[Detector, ...] = make_detectors()
        self._outputs = tuple(name for detector in self._detectors for name in detector.outputs)
        self._places = _places(self._outputs, self.weights.outputs)
        self._is_experience = np.array([name.endswith(EXPERIENCE_ENDINGS) for name in self.weights.outputs])
        self._hazards = Hazards(self.weights)
        self._recalibration = [Recalibration() for _ in self._kinds]
        self._labels = LateLabels(len(self._kinds))
        self._guard = FloodGuard(
            hold_down_seconds=self.settings.hold_down_seconds, daily_budget=self.settings.daily_budget
        )

    @property
    def suppressed(self) -> Mapping[str, int]:
        """Predictions that the daily budget held back, by failure type."""
        return self._guard.suppressed

    def observe(
        self,
        snapshot: Snapshot,
        happened: Collection[str] = (),
        ongoing: Sequence[Episode] = (),
        *,
        guarded: bool = True,
    ) -> list[FailurePrediction]:
        """One tick.

        Args:
            snapshot: The picture of the server.
            happened: Failure types that have happened with this tick.
            ongoing: Failures that go on, those included.
            guarded: Whether the flood guard decides; else everything above its threshold is predicted.

        Returns:
            New predictions.
        """
        now = snapshot.timestamp
        failing = {episode.failure_type for episode in ongoing}
        self._failing = {
            kind: at for kind, at in self._failing.items() if 0.0 <= now - at <= RECOVERY_SECONDS
        } | dict.fromkeys(failing, now)
        features = self._see(snapshot, happened, failing)
        outputs = np.concatenate([detector.score(features) for detector in self._detectors])
        for detector in self._detectors:
            detector.learn(features)
        terms = self.weights.terms(outputs[self._places])
        abstains = self._abstains(snapshot, features)
        if self.settings.learns:
            self._learn(now, snapshot, happened)
        if abstains:
            ruled = self._ruled(snapshot, outputs, features)
            self.outlook = Outlook(tuple(ruled.values()), abstains=abstains)
            return [
                self._prediction(snapshot, features, ruled[kind], {})
                for kind in self._kinds
                if self._guard.allows(kind, calls=kind in ruled and kind not in self._failing, now=now)
            ]
        hazards = self._hazards.hazards(terms)
        stated = 1.0 - np.prod(1.0 - hazards, axis=1)
        going_on = [
            place for place, kind in enumerate(self._kinds) if kind in failing or (failing and kind == ANY_FAILURE)
        ]
        if self.settings.learns:
            self._labels.keep(now, terms, stated, going_on)
        by_name = dict(zip(self._outputs, outputs.tolist(), strict=True))
        forecasts = []
        for place, kind in enumerate(self._kinds):
            probability = self._recalibration[place].probability(float(stated[place]))
            forecasts.append(_with_rule(forecast_of(kind, hazards[place], probability), by_name, features))
        first = None if failing else next((one for one in forecasts if one.failure_type == ANY_FAILURE), None)
        known = [(place, one) for place, one in enumerate(forecasts) if one.failure_type != ANY_FAILURE]
        self.outlook = Outlook(tuple(one for _, one in known if one.failure_type not in failing), first)
        made = []
        for place, forecast in known:
            calls = forecast.failure_type not in self._failing and forecast.probability >= self._threshold(place)
            if self._guard.allows(forecast.failure_type, calls=calls, now=now) if guarded else calls:
                made.append(self._prediction(snapshot, features, forecast, self._contributions(place, terms)))
        return made

    def _see(self, snapshot: Snapshot, happened: Collection[str], failing: Collection[str]) -> Features:
        settings = self.settings
        return self._features.observe(
            snapshot.timestamp,
            snapshot.values,
            is_well=snapshot.condition in _WELL and not failing,
            state=snapshot.condition.value,
            failures=tuple(happened),
            facts={
                "page_age_seconds": snapshot.timestamp - (snapshot.scraped_at or snapshot.timestamp),
                "ttft_objective_seconds": settings.ttft_objective_seconds,
                "inter_token_objective_seconds": settings.inter_token_objective_seconds,
            },
        )

    def _abstains(self, snapshot: Snapshot, features: Features) -> str:
        if snapshot.condition is Condition.STARVED:
            return "the host is short of CPU or memory: that is not the server's doing"
        if snapshot.condition not in _AT_WORK:
            return f"the server is {snapshot.condition.value.replace('_', ' ')}"
        age = snapshot.timestamp - (snapshot.scraped_at if snapshot.scraped_at is not None else float("-inf"))
        if age > STALE_SECONDS or "requests_running" not in snapshot.values:
            return "its newest page is too old" if snapshot.scraped_at is not None else "no page was seen yet"
        stopped = sorted(_STOPS & self._failing.keys())
        if stopped:
            return f"it recovers from {stopped[0]}"
        if features.known_seconds < LEAST_KNOWN_SECONDS:
            return f"it has been followed for less than {LEAST_KNOWN_SECONDS:.0f} s"
        return ""

    def _ruled(self, snapshot: Snapshot, outputs: NDArray[np.float64], features: Features) -> dict[str, Forecast]:
        """What rules alone say of a server that starves: memory that runs out does so whoever takes the CPU."""
        if snapshot.condition is not Condition.STARVED or features.known_seconds < LEAST_KNOWN_SECONDS:
            return {}
        by_name = dict(zip(self._outputs, outputs.tolist(), strict=True))
        nothing = np.full(self.weights.bias.shape[1], 1e-6)
        found = {}
        for kind in RULED_WHEN_STARVED:
            forecast = _with_rule(forecast_of(kind, nothing), by_name, features)
            if kind in self._kinds and forecast.probability >= self._threshold(self._kinds.index(kind)):
                found[kind] = forecast
        return found

    def _learn(self, now: float, snapshot: Snapshot, happened: Collection[str]) -> None:
        if snapshot.condition in (Condition.PAUSED, Condition.STOPPED, Condition.STARTING):
            self._labels.forget()
        places = [
            place for place, kind in enumerate(self._kinds) if kind in happened or (happened and kind == ANY_FAILURE)
        ]
        for look, kind, seconds in self._labels.observe(now, places):
            self._recalibration[kind].learn(float(look.stated[kind]), happened=seconds is not None)
            self._hazards.learn(look.terms, kind, seconds)

    def note_action(self) -> None:
        """Somebody acts on the server: what follows says nothing of what would have followed."""
        self._labels.forget()

    def note_prediction(self, failure_type: str, at: float) -> None:
        """A prediction was made before a restart: it holds the next one down."""
        self._guard.note(failure_type, at)

    def _threshold(self, place: int) -> float:
        least = self.settings.least_probability
        return float(self.weights.thresholds[place]) if least is None else least

    def _contributions(self, place: int, terms: NDArray[np.float64]) -> dict[str, float]:
        """How much each detector output adds to the odds, combinations shared out among what they are made of."""
        count = len(self.weights.outputs)
        slope = self._hazards.mean_slope(place)
        worth = slope[:count].copy()
        active = terms[count:] > 0
        worth += self.weights.units[:, active] @ slope[count:][active]
        outputs = terms[:count]
        # A tenth of a chance that the past repeats itself is not worth a sentence.
        worth[self._is_experience & (outputs < LEAST_EXPERIENCE)] = 0.0
        return dict(zip(self.weights.outputs, (worth * outputs).tolist(), strict=True))

    def _prediction(
        self, snapshot: Snapshot, features: Features, forecast: Forecast, contributions: Mapping[str, float]
    ) -> FailurePrediction:
        kind, now = forecast.failure_type, snapshot.timestamp
        name = f"{self.target}\n{kind}\n{now!r}".encode("utf-8", "surrogatepass")
        return FailurePrediction(
            prediction_id=hashlib.blake2b(name, digest_size=16).hexdigest(),
            timestamp=now,
            current_state=snapshot.state,
            predicted_failure_state=state_after(kind),
            failure_type=kind,
            time_to_failure=forecast.seconds,
            probability=forecast.probability,
            confidence=confidence_of(forecast.probability),
            contributing_factors=factors(kind, features, contributions),
            recommended_mitigations=mitigations_for(kind),
            horizon_seconds=HORIZON_SECONDS,
            time_to_failure_low=forecast.seconds_low,
            time_to_failure_high=forecast.seconds_high,
            calibrated=self.resolved.get(kind, 0) >= LEAST_RESOLVED,
            model_version=self.weights.version,
            target=self.target,
        )

    def patterns(self) -> list[FailurePattern]:
        """Precursor patterns that were learned."""
        return [
            pattern
            for detector in self._detectors
            if isinstance(detector, PrecursorPatterns)
            for pattern in detector.records(self.target)
        ]

    def state(self) -> dict[str, Any]:
        """All that was learned, as values that the store keeps."""
        return {
            "version": STATE_VERSION,
            "features": self._features.state(),
            "detectors": {detector.name: detector.state() for detector in self._detectors},
            "hazards": self._hazards.state(),
            "recalibration": {kind: one.state() for kind, one in zip(self._kinds, self._recalibration, strict=True)},
            "labels": self._labels.state(),
            "guard": self._guard.state(),
            "resolved": dict(self.resolved),
            "failing": dict(self._failing),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, exactly as the one that gave it; what makes no sense in it is left out."""
        version = state.get("version")
        if not isinstance(version, int) or version != STATE_VERSION:
            return
        parts = _mapping(state, "detectors")
        self._features = _restored(self._features, FeatureExtractor, _mapping(state, "features"))
        self._detectors = tuple(
            _restored(detector, type(detector), _mapping(parts, detector.name)) for detector in self._detectors
        )
        self._hazards = _restored(self._hazards, lambda: Hazards(self.weights), _mapping(state, "hazards"))
        self._recalibration = [
            _restored(one, Recalibration, _mapping(_mapping(state, "recalibration"), kind))
            for kind, one in zip(self._kinds, self._recalibration, strict=True)
        ]
        terms = self.weights.slope.shape[-1]
        with suppress(*_NO_STATE):
            self._labels.restore(_mapping(state, "labels"), terms)
        with suppress(*_NO_STATE):
            self._guard.restore(_mapping(state, "guard"))
        for kind, at in _mapping(state, "failing").items():
            known = number_of(at)
            if known is not None:
                self._failing[str(kind)] = known
        for kind, count in _mapping(state, "resolved").items():
            if isinstance(count, int) and not isinstance(count, bool) and count >= 0:
                self.resolved[str(kind)] = count


class _Restorable(Protocol):
    def restore(self, state: Mapping[str, Any]) -> None: ...


Part = TypeVar("Part", bound=_Restorable)
_NO_STATE = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError)


def _restored(part: Part, make: Callable[[], Part], state: Mapping[str, Any]) -> Part:
    """A part with a state taken up; a new one where the state is none that it could have given."""
    try:
        part.restore(state)
    except _NO_STATE:
        return make()
    return part


def _with_rule(forecast: Forecast, outputs: Mapping[str, float], features: Features) -> Forecast:
    """What the rule for this failure says, where it is surer than the hazards are."""
    rule = judge_by_rule(forecast.failure_type, outputs, features)
    if rule is None or rule.probability <= forecast.probability:
        return forecast
    if rule.seconds is None or rule.seconds_low is None or rule.seconds_high is None:
        return replace(forecast, probability=rule.probability)
    return Forecast(forecast.failure_type, rule.probability, rule.seconds, rule.seconds_low, rule.seconds_high)


def _places(outputs: Sequence[str], wanted: Sequence[str]) -> NDArray[np.int64]:
    """Where the detector outputs that the weights are for stand."""
    return np.array([outputs.index(name) for name in wanted], dtype=np.int64)


def _mapping(state: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = state.get(name)
    return found if isinstance(found, Mapping) else {}
