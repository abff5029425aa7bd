"""What a detector of the predictions promises."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.clock import make_random
from vllm_monitor.persistence.models.model_codec import encode_model
from vllm_monitor.predictive_failure_detection.detectors import Detector
from vllm_monitor.predictive_failure_detection.features import SIGNALS, FeatureExtractor, Features
from vllm_monitor.records import FAILURE_TYPES
from vllm_monitor.testing.expectations import expect

__all__ = ["DetectorContract", "state_bytes"]

BEGAN = 1_750_000_000.0


def state_bytes(state: dict[str, Any]) -> int:
    """How large a state is in the store, uncompressed; one that the store cannot keep is an error."""
    encoded = encode_model(state, compress=False)
    return len(encoded.structure) + len(encoded.arrays)


class DetectorContract:
    """Subclass it, and give your detector."""

    def make(self) -> Detector:
        """A new detector."""
        raise NotImplementedError

    def looks(self, count: int, *, seed: int = 1, step_seconds: float = 1.0) -> Iterator[Features]:
        """Features of a server whose figures wander, vanish, come back, and sometimes make no sense."""
        dice, extractor = make_random(seed), FeatureExtractor()
        for number in range(count):
            now = BEGAN + number * step_seconds
            wave = 1.0 + math.sin(number / 40.0)
            values = {
                name: wave * dice.expovariate(1.0) * (1e9 if name.endswith("bytes") else 1.0)
                for name in SIGNALS
                if dice.random() < 0.9
            }
            if "kv_cache_usage_ratio" in values:
                values["kv_cache_usage_ratio"] = min(1.0, 0.3 * values["kv_cache_usage_ratio"])
            if number % 97 == 0:
                values |= {"requests_waiting": math.inf, "api_open_fds": math.nan, "requests_running": -1.0}
            failures = (FAILURE_TYPES[number // 300 % len(FAILURE_TYPES)],) if number % 300 == 299 else ()
            yield extractor.observe(now, values, is_well=number % 50 > 5, state="ok", failures=failures)

    def follow(self, detector: Detector, looks: Iterator[Features]) -> NDArray[np.float64]:
        """Score and learn all of them; (looks, outputs)."""
        scores = []
        for look in looks:
            scores.append(detector.score(look))
            detector.learn(look)
        return np.array(scores)

    def test_scores_are_between_0_and_1_whatever_it_is_given(self) -> None:
        """Figures that vanish, infinities, a first look."""
        detector = self.make()
        scores = self.follow(detector, self.looks(600))
        expect(scores.shape == (600, len(detector.outputs)), "one number for each output")
        expect(bool(np.isfinite(scores).all() and (scores >= 0).all() and (scores <= 1).all()), "all from 0 to 1")
        expect(len(set(detector.outputs)) == len(detector.outputs), "outputs have names of their own")

    def test_scoring_changes_nothing(self) -> None:
        """However often a look is scored."""
        once, often = self.make(), self.make()
        for look in self.looks(300):
            expected = once.score(look)
            for _ in range(3):
                expect(bool((often.score(look) == expected).all()), "the same score again")
            once.learn(look)
            often.learn(look)

    def test_a_restored_one_goes_on_exactly(self) -> None:
        """To the bit, wherever it was cut."""
        looks = list(self.looks(700))
        whole = self.make()
        expected = self.follow(whole, iter(looks))
        for cut in (0, 1, 7, 350):
            first, second = self.make(), self.make()
            self.follow(first, iter(looks[:cut]))
            second.restore(first.state())
            expect(
                bool((self.follow(second, iter(looks[cut:])) == expected[cut:]).all()), f"the same after {cut} looks"
            )

    def test_memory_is_bounded(self) -> None:
        """A state of many looks is no larger than one of fewer."""
        detector = self.make()
        self.follow(detector, self.looks(2_500, step_seconds=5.0))
        before = state_bytes(detector.state())
        self.follow(detector, self.looks(2_500, seed=2, step_seconds=5.0))
        expect(state_bytes(detector.state()) < 1.2 * before + 20_000, "its state does not grow for ever")

    def test_a_state_that_makes_no_sense_is_left_out(self) -> None:
        """Another detector's, another version's, a hostile one."""
        look = next(self.looks(1))
        states: tuple[dict[str, Any], ...] = (
            {},
            {name: value for name in self.make().state() for value in (None,)},
            dict.fromkeys(self.make().state(), "x"),
            {name: [1, [2], "3"] for name in self.make().state()},
            dict.fromkeys(self.make().state(), math.nan),
            {name: {"a": {}} for name in self.make().state()},
            dict.fromkeys(self.make().state(), -(10**30)),
        )
        for hostile in states:
            detector = self.make()
            detector.restore(hostile)
            score = detector.score(look)
            expect(bool(np.isfinite(score).all()), f"it still scores after {hostile!r}")
            detector.learn(look)
