"""When requests were refused: from the first one until none was for half a minute. Told at both ends, not for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from vllm_monitor.records import EngineNote, EngineObservation

__all__ = ["RejectionEpisodes"]

QUIET_SECONDS = 30.0
"""Without a refusal for so long an episode is over."""


class RejectionEpisodes:
    """Follows what each API process of one server counts. Not thread-safe."""

    def __init__(self) -> None:
        self._counts: dict[str, Mapping[str, int]] = {}
        self._began_at: float | None = None
        self._last_at: float | None = None
        self._refused: Counter[str] = Counter()

    def reopen(self, began_at: float, refused: Mapping[str, int]) -> None:
        """Go on with an episode that an earlier watch has told the beginning of.

        Args:
            began_at: Unix seconds.
            refused: Requests refused by then, by reason.
        """
        self._began_at, self._last_at = began_at, None
        self._refused = Counter(refused)

    def know(self, api_server: str, counts: Mapping[str, int]) -> None:
        """What an API process had counted when it was last read."""
        self._counts[api_server] = dict(counts)

    def observe(self, one: EngineObservation) -> list[EngineNote]:
        """What has begun or ended with a line of totals: notes ``rejected`` and ``rejected_over``.

        Their facts are ``requests``, how many were refused in the episode by then, and ``reasons``, how many for which.
        """
        told: list[EngineNote] = []
        if self._last_at is None:
            self._last_at = one.timestamp
        if self._began_at is not None and one.timestamp - self._last_at >= QUIET_SECONDS:
            seconds = round(self._last_at - self._began_at, 3)
            told.append(EngineNote(one.timestamp, "rejected_over", {**self._facts(), "seconds": seconds}))
            self._began_at, self._refused = None, Counter()
        new = self._since_last(one)
        if not new:
            return told
        self._refused.update(new)
        self._last_at = max(self._last_at, one.timestamp)
        if self._began_at is None:
            self._began_at = one.timestamp
            told.append(EngineNote(one.timestamp, "rejected", self._facts()))
        return told

    def _since_last(self, one: EngineObservation) -> dict[str, int]:
        """What was refused since the line before of the same process; of the first line nothing is known."""
        before = self._counts.get(one.api_server)
        self._counts[one.api_server] = one.rejected
        if before is None:
            return {}
        # A count that fell is that of a new process, which began at nothing.
        grown = {reason: count - before.get(reason, 0) for reason, count in one.rejected.items()}
        new = {reason: more if more >= 0 else one.rejected[reason] for reason, more in grown.items()}
        return {reason: more for reason, more in new.items() if more > 0}

    def _facts(self) -> dict[str, object]:
        return {"requests": self._refused.total(), "reasons": dict(sorted(self._refused.items()))}
