"""Predictions and failures to score, some by hand and some by chance."""

from __future__ import annotations

from hypothesis import strategies as st

from vllm_monitor.failures import Episode
from vllm_monitor.records import FailurePrediction, LifecycleState, PredictionConfidence, PredictionOutcome

HAPPENED, DID_NOT_HAPPEN = PredictionOutcome.HAPPENED, PredictionOutcome.DID_NOT_HAPPEN
MITIGATED, CENSORED, OPEN = PredictionOutcome.MITIGATED, PredictionOutcome.CENSORED, PredictionOutcome.OPEN
DAY = 86_400.0
KV, STALL = "kv_exhaustion", "engine_stall"


def predicted(
    timestamp: float,
    outcome: PredictionOutcome = HAPPENED,
    probability: float = 0.5,
    *,
    name: str = "",
    kind: str = KV,
    target: str = "a",
    horizon: float = 300.0,
    expected: float = 60.0,
    interval: tuple[float, float] | None = None,
) -> FailurePrediction:
    low, high = interval or (None, None)
    return FailurePrediction(
        name or f"{target}/{kind}/{timestamp}",
        timestamp,
        LifecycleState.SERVING,
        None,
        kind,
        expected,
        probability,
        PredictionConfidence.MEDIUM,
        [],
        [],
        horizon_seconds=horizon,
        time_to_failure_low=low,
        time_to_failure_high=high,
        outcome=outcome,
        target=target,
    )


def failed(happened_at: float, *, kind: str = KV, target: str = "a") -> Episode:
    return Episode(target, kind, happened_at - 5.0, happened_at)


@st.composite
def predictions(draw: st.DrawFn) -> list[FailurePrediction]:
    """Up to forty predictions of ten days, with hostile probabilities among them."""
    hostile = st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0, 1.5, -0.25, float("nan")])
    drawn = draw(
        st.lists(
            st.tuples(
                st.floats(0.0, 10 * DAY - 1.0),
                st.sampled_from(list(PredictionOutcome)),
                st.floats(0.0, 1.0) | hostile,
                st.sampled_from([KV, STALL, "mine"]),
                st.sampled_from(["a", "b"]),
            ),
            max_size=40,
        )
    )
    return [
        predicted(timestamp, outcome, probability, name=str(number), kind=kind, target=target)
        for number, (timestamp, outcome, probability, kind, target) in enumerate(drawn)
    ]
