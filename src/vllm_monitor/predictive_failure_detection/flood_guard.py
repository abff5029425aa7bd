"""The flood guard: one prediction for one coming failure, and never more in a day than a person reads.

A prediction is made when two of the last three looks call for it and are two seconds apart (debounce: a burst that is
over by then is none; where looks follow each other faster, those of three seconds count), not again while the one
before it is open or was made a short while ago (hold-down), and never more than so many a day for one server. What is
held back for the budget is counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from vllm_monitor.predictive_failure_detection.plain_state import number_of

__all__ = ["FloodGuard"]

DAY_SECONDS = 86_400.0
APART_SECONDS = 1.9
WINDOW_SECONDS = 2.9
MOST_LOOKS = 50
PAIR = 2


class FloodGuard:
    """Of one server. Not thread-safe.

    Args:
        hold_down_seconds: Least time between two predictions of one type.
        daily_budget: Most predictions in 24 hours.
        debounce: How many of how many looks must call for it.
    """

    def __init__(
        self, *, hold_down_seconds: float = 300.0, daily_budget: int = 48, debounce: tuple[int, int] = (2, 3)
    ) -> None:
        self._hold_down_seconds = hold_down_seconds
        self._daily_budget = daily_budget
        self._needed, self._of = debounce
        self._looks: dict[str, deque[tuple[float, bool]]] = {}
        self._made_at: dict[str, float] = {}
        self._made: deque[float] = deque(maxlen=daily_budget)
        self._counted_at: dict[str, float] = {}
        self.suppressed: dict[str, int] = {}

    def allows(self, kind: str, *, calls: bool, now: float) -> bool:
        """Whether to make a prediction of a type now; then it counts as made.

        Args:
            kind: The failure type.
            calls: Whether this look calls for it.
            now: Unix seconds; a step back begins the hold-down anew.
        """
        looks = self._looks.setdefault(kind, deque(maxlen=MOST_LOOKS))
        if looks and now < looks[-1][0]:
            looks.clear()
        earlier = [
            at for place, (at, called) in enumerate(reversed(looks), 1) if called and self._counts(place, at, now)
        ]
        looks.append((now, calls))
        if not calls or len(earlier) < self._needed - 1 or now - min(earlier, default=now) < APART_SECONDS:
            return False
        before = self._made_at.get(kind)
        if before is not None and 0.0 <= now - before < self._hold_down_seconds:
            return False
        while self._made and not 0.0 <= now - self._made[0] < DAY_SECONDS:
            self._made.popleft()
        if len(self._made) >= self._daily_budget:
            # Once for each hold-down, as it would have been made.
            counted = self._counted_at.get(kind)
            if counted is None or not 0.0 <= now - counted < self._hold_down_seconds:
                self._counted_at[kind] = now
                self.suppressed[kind] = self.suppressed.get(kind, 0) + 1
            return False
        self._made_at[kind] = now
        self._made.append(now)
        return True

    def _counts(self, place: int, at: float, now: float) -> bool:
        """Whether a look is late enough to count."""
        return place < self._of or now - at <= WINDOW_SECONDS

    def note(self, kind: str, at: float) -> None:
        """A prediction that was made and of which this guard does not know, such as one from before a crash."""
        if at > self._made_at.get(kind, float("-inf")):
            self._made_at[kind] = at
            self._made.append(at)

    def state(self) -> dict[str, Any]:
        """As values that the store keeps."""
        return {
            "looks": {kind: [[at, called] for at, called in looks] for kind, looks in self._looks.items()},
            "made_at": dict(self._made_at),
            "made": list(self._made),
            "counted_at": dict(self._counted_at),
            "suppressed": dict(self.suppressed),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; what makes no sense is left out."""
        for kind, looks in _items(state.get("looks")):
            if isinstance(looks, list | tuple):
                pairs = (one for one in looks if isinstance(one, list | tuple) and len(one) == PAIR)
                timed = [(number_of(at), called is True) for at, called in pairs]
                self._looks[kind] = deque(((at, called) for at, called in timed if at is not None), maxlen=MOST_LOOKS)
        for name, into in (("made_at", self._made_at), ("counted_at", self._counted_at)):
            for kind, value in _items(state.get(name)):
                known = number_of(value)
                if known is not None:
                    into[kind] = known
        made = state.get("made")
        self._made.extend(at for at in map(number_of, made if isinstance(made, list | tuple) else ()) if at is not None)
        for kind, count in _items(state.get("suppressed")):
            if isinstance(count, int) and not isinstance(count, bool) and count >= 0:
                self.suppressed[kind] = count


def _items(value: Any) -> list[tuple[str, Any]]:
    return [(str(key), one) for key, one in value.items()] if isinstance(value, Mapping) else []
