"""What is usual at a load: bounded, saved and restored, whatever it is given."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from vllm_monitor.failures import LoadBaseline

numbers = st.none() | st.floats()
anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(st.lists(st.tuples(numbers, numbers), max_size=50))
def test_whatever_it_learns_it_stays_finite_and_comes_back_the_same(
    looks: list[tuple[float | None, float | None]],
) -> None:
    baseline = LoadBaseline()
    for running, seconds in looks * 3:
        baseline.learn(running, seconds)
        ratio = baseline.ratio(running, seconds)
        assert ratio is None or math.isfinite(ratio)
    state = json.loads(json.dumps(baseline.state(), allow_nan=False))
    again = LoadBaseline()
    again.restore(state)
    assert again.state() == baseline.state()


@given(st.dictionaries(st.just("levels"), anything))
def test_a_state_that_makes_no_sense_teaches_nothing(state: dict[str, object]) -> None:
    baseline = LoadBaseline()
    baseline.restore(state)
    assert all(math.isfinite(mean) and mean > 0 for _, _, mean in baseline.state()["levels"])
