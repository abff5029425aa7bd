"""Half-space trees: how few looks of the past lie where this one lies, over all figures at once.

Tan, Ting and Liu, "Fast anomaly detection for streaming data", IJCAI 2011. Trees of random half-spaces are drawn once;
each leaf counts the looks of the last window, and a look in a leaf that few others reach is unusual.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.predictive_failure_detection.features import SIGNALS, Features
from vllm_monitor.predictive_failure_detection.plain_state import array_of

__all__ = ["HalfSpaceTrees"]

TREES, DEPTH, WINDOW = 25, 7, 240
_SEED = 20_111


class HalfSpaceTrees:
    """Twenty-five trees over the z of every signal."""

    name = "half_space_trees"
    outputs = ("unlike_the_past",)

    def __init__(self) -> None:
        drawn = np.random.default_rng(_SEED)  # drawn once and alike everywhere, so that states fit
        inner = 2**DEPTH - 1
        self._figure = drawn.integers(0, len(SIGNALS), (TREES, inner))
        self._split = drawn.uniform(0.25, 0.75, (TREES, inner))
        self._tree = np.arange(TREES)
        self._reference = np.zeros((TREES, 2**DEPTH))
        self._latest = np.zeros((TREES, 2**DEPTH))
        self._count = 0
        self._is_ready = False

    def _leaves(self, features: Features) -> NDArray[np.int64]:
        place = np.clip(0.5 + features.z / 12.0, 0.0, 1.0)
        node = np.zeros(TREES, dtype=np.int64)
        for _ in range(DEPTH):
            right = place[self._figure[self._tree, node]] > self._split[self._tree, node]
            node = 2 * node + 1 + right
        return np.asarray(node - (2**DEPTH - 1), dtype=np.int64)

    def score(self, features: Features) -> NDArray[np.float64]:
        """Mean share of trees in which next to no look of the last window reached the same leaf."""
        if not self._is_ready:
            return np.zeros(1)
        mass = self._reference[self._tree, self._leaves(features)]
        return np.array([float(np.mean(1.0 / (1.0 + mass)))])

    def learn(self, features: Features) -> None:
        """Count this look, unless something is the matter."""
        if not features.is_well:
            return
        self._latest[self._tree, self._leaves(features)] += 1.0
        self._count += 1
        if self._count >= WINDOW:
            self._reference, self._latest = self._latest, np.zeros_like(self._latest)
            self._count, self._is_ready = 0, True

    def state(self) -> dict[str, Any]:
        """See :class:`Detector`."""
        return {
            "reference": self._reference.copy(),
            "latest": self._latest.copy(),
            "count": self._count,
            "is_ready": self._is_ready,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """See :class:`Detector`."""
        shape, count = self._reference.shape, state.get("count")
        reference, latest = array_of(state.get("reference"), shape), array_of(state.get("latest"), shape)
        if reference is None or latest is None or not isinstance(count, int) or not 0 <= count < WINDOW:
            return
        self._reference, self._latest = np.maximum(reference, 0.0), np.maximum(latest, 0.0)
        self._count, self._is_ready = count, state.get("is_ready") is True
