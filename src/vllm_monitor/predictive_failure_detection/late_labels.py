"""Late labels: what followed a look is known minutes later; until then the look is kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_monitor.predictive_failure_detection.hazards import HORIZON_SECONDS
from vllm_monitor.predictive_failure_detection.plain_state import array_of, number_of

__all__ = ["LateLabels", "Look"]

EVERY_SECONDS = 15.0
MOST_LOOKS = int(HORIZON_SECONDS / EVERY_SECONDS) + 2
LONGEST_HOLE_SECONDS = 30.0


@dataclass(slots=True)
class Look:
    """One look, waiting for what follows.

    Args:
        at: Unix seconds.
        terms: What hazards were computed from.
        stated: Probability of each failure type as it was before recalibration.
        open: Failure types of which it is not known yet.
    """

    at: float
    terms: NDArray[np.float64]
    stated: NDArray[np.float64]
    open: NDArray[np.bool_]


class LateLabels:
    """Looks of the last minutes of one server. Bounded; not thread-safe.

    Args:
        count: How many failure types there are.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._looks: deque[Look] = deque(maxlen=MOST_LOOKS)
        self._at: float | None = None

    def observe(self, now: float, happened: Collection[int]) -> Iterator[tuple[Look, int, float | None]]:
        """What is known now of earlier looks: look, failure type, seconds until it failed (``None``: it did not).

        Args:
            now: Unix seconds. After a hole, or a step back of the clock, nothing is known of the looks before.
            happened: Failure types that have happened now.
        """
        if self._at is not None and not 0.0 <= now - self._at <= LONGEST_HOLE_SECONDS:
            self._looks.clear()
        self._at = now
        for kind in happened:
            for look in self._looks:
                if look.open[kind] and look.at < now:
                    look.open[kind] = False
                    yield look, kind, now - look.at
        while self._looks and now - self._looks[0].at > HORIZON_SECONDS:
            look = self._looks.popleft()
            for kind in np.flatnonzero(look.open).tolist():
                yield look, kind, None

    def keep(
        self, now: float, terms: NDArray[np.float64], stated: NDArray[np.float64], ongoing: Collection[int]
    ) -> None:
        """Keep a look, every so often; of failures that go on nothing is to be learned."""
        if self._looks and now - self._looks[-1].at < EVERY_SECONDS - 0.01:
            return
        is_open = np.ones(self._count, dtype=np.bool_)
        is_open[list(ongoing)] = False
        self._looks.append(Look(now, terms, stated, is_open))

    def forget(self) -> None:
        """Something was done about it, or it was meant: nothing follows from what follows."""
        self._looks.clear()

    def state(self) -> dict[str, Any]:
        """As values that the store keeps."""
        return {
            "at": self._at,
            "looks": [
                {"at": one.at, "terms": one.terms, "stated": one.stated, "open": one.open.astype(np.float64)}
                for one in self._looks
            ],
        }

    def restore(self, state: Mapping[str, Any], terms: int) -> None:
        """Go on from a state; what makes no sense in it is left out."""
        self._at = number_of(state.get("at"))
        looks = state.get("looks")
        for one in looks if isinstance(looks, list | tuple) else ():
            if not isinstance(one, Mapping):
                continue
            at, kept = number_of(one.get("at")), array_of(one.get("terms"), (terms,))
            stated, is_open = (array_of(one.get(name), (self._count,)) for name in ("stated", "open"))
            if at is not None and kept is not None and stated is not None and is_open is not None:
                self._looks.append(Look(at, kept, stated, is_open > 0))
