"""The graph of states: how often each state was followed by each other, and so how likely a failure is from here.

States are those of the picture (condition, fill of the cache, length of the queue). Transitions are counted every few
seconds, with a Dirichlet prior; failures are absorbing states of the Markov chain, so the probability and the time of
reaching one follow (Kemeny and Snell, "Finite Markov Chains", 1960, chapter 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.predictive_failure_detection.features import Features
from vllm_monitor.predictive_failure_detection.plain_state import array_of, number_of
from vllm_monitor.records import FAILURE_TYPES

__all__ = ["StateGraph"]

STEP_SECONDS = 5.0
HORIZON_STEPS = 60
MOST_STATES = 48
STAY_PRIOR, FAILURE_PRIOR = 120.0, 1e-4
"""Pseudo-counts: that a state stays as it is (ten minutes of it), and that it is followed by any one failure."""


class StateGraph:
    """Counts transitions between states, and answers how likely each failure is within the horizon."""

    name = "state_graph"
    outputs = tuple(f"{kind}_from_here" for kind in FAILURE_TYPES)

    def __init__(self) -> None:
        self._states: list[str] = []
        self._counts = np.zeros((0, 0))
        self._failures = np.zeros((0, len(FAILURE_TYPES)))
        self._from: str | None = None
        self._at: float | None = None
        self._hits: NDArray[np.float64] | None = None
        self._hits_age = 0

    def score(self, features: Features) -> NDArray[np.float64]:
        """Probability of each failure within five minutes."""
        state = _state_of(features)
        if state not in self._states or self._hits is None:
            return np.zeros(len(FAILURE_TYPES))
        place = self._states.index(state)
        return self._hits[place] if place < len(self._hits) else np.zeros(len(FAILURE_TYPES))

    def learn(self, features: Features) -> None:
        """Count the step from the state before to this one; a failure ends the walk."""
        now, state = features.timestamp, _state_of(features)
        gap = None if self._at is None else now - self._at
        if gap is not None and 0 <= gap < 0.99 * STEP_SECONDS and not features.failures:
            return
        before, self._at = self._from, now
        self._from = state
        if before is None or gap is None or not 0 <= gap <= 4 * STEP_SECONDS:
            self._place(state)
            return
        row = self._place(before)
        if features.failures:
            for kind in features.failures:
                if row is not None and kind in FAILURE_TYPES:
                    self._failures[row, FAILURE_TYPES.index(kind)] += 1.0
            self._hits = self._solve()
            return
        column = self._place(state)
        if row is not None and column is not None:
            self._counts[row, column] += 1.0
        self._hits_age += 1
        if self._hits_age >= HORIZON_STEPS or self._hits is None:
            self._hits_age = 0
            self._hits = self._solve()

    def _place(self, state: str) -> int | None:
        if state in self._states:
            return self._states.index(state)
        if len(self._states) >= MOST_STATES:
            return None
        self._states.append(state)
        grown = np.zeros((len(self._states), len(self._states)))
        grown[:-1, :-1] = self._counts
        self._counts = grown
        self._failures = np.vstack([self._failures, np.zeros(len(FAILURE_TYPES))])
        return len(self._states) - 1

    def chain(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Smoothed probabilities of one step: to each other state, and to each failure."""
        counts = self._counts + STAY_PRIOR * np.eye(len(self._states))
        failures = self._failures + FAILURE_PRIOR
        total = counts.sum(axis=1, keepdims=True) + failures.sum(axis=1, keepdims=True)
        return counts / total, failures / total

    def hitting_seconds(self) -> dict[str, float]:
        """Expected seconds from each state to the first failure of any kind."""
        if not self._states:
            return {}
        inner, _ = self.chain()
        steps = np.linalg.solve(np.eye(len(self._states)) - inner, np.ones(len(self._states)))
        return {state: float(seconds) for state, seconds in zip(self._states, steps * STEP_SECONDS, strict=True)}

    def _solve(self) -> NDArray[np.float64]:
        """Probability of each failure within the horizon, from each state."""
        inner, out = self.chain()
        reached, power = out.copy(), inner
        # reached(2n) = reached(n) + inner^n reached(n): doubling reaches 64 steps in six products.
        steps = 1
        while steps < HORIZON_STEPS:
            reached = reached + power @ reached
            power = power @ power
            steps *= 2
        return np.minimum(reached, 1.0)

    def state(self) -> dict[str, Any]:
        """See :class:`Detector`."""
        return {
            "states": list(self._states),
            "counts": self._counts.copy(),
            "failures": self._failures.copy(),
            "failure_types": list(FAILURE_TYPES),
            "from": self._from,
            "at": self._at,
            "hits": None if self._hits is None else self._hits.copy(),
            "hits_age": self._hits_age,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """See :class:`Detector`."""
        states = state.get("states")
        if not isinstance(states, list | tuple) or not all(isinstance(one, str) for one in states):
            return
        count = len(states)
        if count > MOST_STATES or len(set(states)) != count or list(state.get("failure_types", ())) != [*FAILURE_TYPES]:
            return
        counts = array_of(state.get("counts"), (count, count))
        failures = array_of(state.get("failures"), (count, len(FAILURE_TYPES)))
        if counts is None or failures is None or (counts < 0).any() or (failures < 0).any():
            return
        self._states, self._counts, self._failures = list(states), counts, failures
        before = state.get("from")
        self._from = before if isinstance(before, str) else None
        self._at = number_of(state.get("at"))
        hits = state.get("hits")
        rows = len(hits) if isinstance(hits, np.ndarray | list) and len(hits) <= count else 0
        self._hits = array_of(hits, (rows, len(FAILURE_TYPES))) if rows else None
        age = state.get("hits_age")
        self._hits_age = age if isinstance(age, int) and 0 <= age < HORIZON_STEPS else 0


def _state_of(features: Features) -> str:
    kv, waiting = features.value("kv_cache_usage_ratio", 0.0), features.value("requests_waiting", 0.0)
    fill = 3 if kv >= 0.95 else 2 if kv >= 0.8 else 1 if kv >= 0.5 else 0
    queue = 2 if waiting >= 10 else 1 if waiting >= 1 else 0
    return f"{features.state} kv{fill} queue{queue}"
