"""The failures of one target: the watch over them, and what it must know beside the picture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm_monitor.failures import Episode, Facts, FailureWatch, Slowdown
from vllm_monitor.picture import Snapshot
from vllm_monitor.records import Condition

__all__ = ["TargetFailures"]

_WELL = frozenset({Condition.OK, Condition.IDLE})


class TargetFailures:
    """Follows the failures of one target and learns what is usual at its loads. Not thread-safe: one owner.

    Args:
        target: The server's URL.
        ttft_objective_seconds: Longest time to first token that is still good.
        inter_token_objective_seconds: Longest time between two tokens that is still good.
    """

    def __init__(self, target: str, *, ttft_objective_seconds: float, inter_token_objective_seconds: float) -> None:
        self._watch = FailureWatch(target)
        self._slowdown = Slowdown()
        self._ttft_seconds = ttft_objective_seconds
        self._inter_token_seconds = inter_token_objective_seconds
        self._has_learned = False

    def resume(self, episodes: Iterable[Episode], now: float, last_seen: float | None) -> None:
        """Go on with the failures that had not ended, see :meth:`FailureWatch.resume`."""
        self._watch.resume(episodes, now, last_seen)

    def observe(self, snapshot: Snapshot, *, is_host_pressed: bool, is_another: bool) -> list[Episode]:
        """One tick.

        Args:
            snapshot: The picture.
            is_host_pressed: The server's host is short of CPU or memory, so its speed says nothing of what is usual.
            is_another: The server has another model or version from now on.

        Returns:
            Failures that have happened, and those that are over.
        """
        if is_another:
            self._slowdown.forget()
        facts = Facts(
            ttft_objective_seconds=self._ttft_seconds,
            inter_token_objective_seconds=self._inter_token_seconds,
            slowdown_ratio=self._slowdown.observe(snapshot.timestamp, snapshot.values),
        )
        found = self._watch.observe(snapshot, facts)
        if snapshot.condition in _WELL and not is_host_pressed and not self._watch.current():
            self._has_learned = self._slowdown.learn() or self._has_learned
        return found

    def current(self) -> list[Episode]:
        """The failures that go on."""
        return self._watch.current()

    def undecided(self) -> frozenset[str]:
        """The failure types of which the newest tick could not tell."""
        return self._watch.undecided()

    def take_learned(self) -> dict[str, Any] | None:
        """What is usual at each load; ``None`` when nothing was learned since this was last asked."""
        if not self._has_learned:
            return None
        self._has_learned = False
        return self._slowdown.baseline.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what an earlier watch has learned."""
        self._slowdown.baseline.restore(state)
