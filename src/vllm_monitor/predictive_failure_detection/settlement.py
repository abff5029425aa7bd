"""Settles predictions: says of each, once, what became of it, without a person."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from vllm_monitor.failures import Episode
from vllm_monitor.records import FAILURE_TYPES, FailurePrediction, PredictionOutcome

__all__ = ["PredictionSettlement", "Settled"]

MOST_UNSEEN_RATIO = 0.1
"""Share of a horizon of which nothing need be known."""
LONGEST_HOLE_SECONDS = 30.0
"""The shortest failures are over within seconds; a stretch without a look that is longer than this may hide one."""
MOST_OPEN = 256
"""Each open prediction costs a fraction of a microsecond a tick."""
LOOKS_REMEMBERED = 1_024
REMEMBERED_SECONDS = 60.0
"""A prediction may come this late without losing what was seen since it was made."""
FAILURES_REMEMBERED = 64
MITIGATIONS_REMEMBERED = 64
SETTLED_REMEMBERED = 4_096

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a prediction.

    Args:
        prediction: As it was made.
        outcome: What became of it.
        resolved_at: Unix seconds at which that was known.
        reason: Why, in words.
        lead_seconds: For one that came true, how long before the failure it was made.
    """

    prediction: FailurePrediction
    outcome: PredictionOutcome
    resolved_at: float
    reason: str
    lead_seconds: float | None = None

    @property
    def resolved(self) -> FailurePrediction:
        """The prediction with its outcome."""
        return replace(self.prediction, outcome=self.outcome, resolved_at=self.resolved_at)


class PredictionSettlement:
    """The open predictions of one server, and what becomes of them.

    A prediction claims that a failure of its type happens in ``(timestamp, timestamp + horizon_seconds]``. It is

    - ``HAPPENED`` as soon as one has, by the definitions of ``failures``;
    - ``CENSORED`` as soon as somebody stops, pauses or restarts the server on purpose, unless a mitigation began
      before: what would have happened nobody can say;
    - ``CENSORED`` at the end of the horizon when too little was seen of it: something was known for less than 90 % of
      it, or nothing for more than 30 s on end. What cannot count as seen: that nobody looked, that the verdict was
      unknown, that this type could not be told, and that the same failure was going on already when it was predicted;
    - ``CENSORED`` then also when nobody can tell whether its type has happened: it is none of ``FAILURE_TYPES``;
    - ``MITIGATED`` then when an attempt to mitigate began within the horizon;
    - ``DID_NOT_HAPPEN`` then otherwise.

    A prediction without a sensible time or horizon, one made in a future that a clock set back has undone, and the
    oldest of more than 256 open ones are ``CENSORED`` at once.

    Every prediction is settled once, also when it is added twice. Deterministic; it has no clock. Memory is bounded.
    Not thread-safe: one owner.

    Args:
        target: The server's URL.
        longest_hole_seconds: How long nothing need be known on end; more than 30 s where looks are further apart.
    """

    def __init__(self, target: str, *, longest_hole_seconds: float = LONGEST_HOLE_SECONDS) -> None:
        self.target = target
        self._longest_hole = longest_hole_seconds
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._pushed_out: list[_Open] = []
        self._settled_ids: OrderedDict[str, None] = OrderedDict()
        self._now: float | None = None
        self._looks: deque[tuple[float, float, bool]] = deque(maxlen=LOOKS_REMEMBERED)
        self._failures: deque[tuple[str, float]] = deque(maxlen=FAILURES_REMEMBERED)
        self._mitigated_at: deque[float] = deque(maxlen=MITIGATIONS_REMEMBERED)

    def open(self) -> list[FailurePrediction]:
        """What is not settled yet, in the order in which it was added."""
        return [one.prediction for one in self._open.values()]

    def add(self, prediction: FailurePrediction) -> bool:
        """Take in a prediction; whether it is new. One that is resolved already is not taken."""
        if not self._is_new(prediction):
            return False
        one = _Open(prediction)
        for began, ended, is_known in self._looks:
            one.see(began, ended, is_known=is_known)
        for failure_type, at in self._failures:
            one.meet(failure_type, at)
        self._keep(one)
        return True

    def note_mitigation(self, at: float) -> None:
        """An attempt to mitigate began at this time (unix seconds)."""
        self._mitigated_at.append(at)

    def observe(
        self,
        now: float,
        *,
        known: bool,
        failures: Sequence[Episode],
        ongoing: Sequence[Episode],
        meant: bool,
        undecided: Collection[str] = (),
    ) -> list[Settled]:
        """One tick.

        Args:
            now: Unix seconds.
            known: Whether the tick has a verdict on the server.
            failures: Failures that have happened, or are over, with this tick.
            ongoing: Failures that go on after it.
            meant: Somebody has stopped, paused or restarted the server on purpose.
            undecided: Failure types of which this tick cannot tell.

        Returns:
            Predictions that are settled now.
        """
        before, self._now = self._now, now
        if before is not None and now < before:
            self._forget_after(now)
        self._note_failures(one for one in (*failures, *ongoing) if one.happened_at <= now)
        if before is not None and now > before:
            is_known = known and now - before <= self._longest_hole
            self._note_look(before, now, is_known=is_known)
            going_on = {one.failure_type: one.happened_at for one in ongoing}
            for one in self._open.values():
                prediction = one.prediction
                happened_at = going_on.get(prediction.failure_type)
                was_there = happened_at is not None and not prediction.timestamp < happened_at <= now
                told = is_known and prediction.failure_type not in undecided and not was_there
                one.see(before, now, is_known=told)
        found = []
        for one in self._pushed_out:
            censored = self._settle(one, now, PredictionOutcome.CENSORED, "too many were open")
            found.append(self._decide(one, now, meant=meant) or censored)
        self._pushed_out.clear()
        for one in list(self._open.values()):
            settled = self._decide(one, now, meant=meant)
            if settled is not None:
                del self._open[one.prediction.prediction_id]
                found.append(settled)
        return found

    def resume(
        self,
        now: float,
        predictions: Iterable[FailurePrediction],
        *,
        failures: Iterable[Episode] = (),
        watched: Sequence[Interval] = (),
        mitigations: Iterable[float] = (),
    ) -> list[Settled]:
        """Take up what was open when an earlier watch ended.

        Args:
            now: Unix seconds.
            predictions: The stored ones; those that are resolved are passed over.
            failures: Failures that are stored.
            watched: Stretches (unix seconds) in which there was a verdict, ascending and apart.
            mitigations: When attempts to mitigate began.

        Returns:
            Those that can be settled now: overdue ones, and those that have come true. The others stay open, and the
            time in which nobody watched counts as not seen.
        """
        episodes = sorted(failures, key=lambda one: one.happened_at)
        self._note_failures(episodes)
        attempts = sorted(mitigations)
        self._mitigated_at.extend(attempts)
        times: dict[str, list[float]] = {}
        for episode in episodes:
            times.setdefault(episode.failure_type, []).append(episode.happened_at)
        ends = [ended for _, ended in watched]
        found = []
        for prediction in sorted(predictions, key=lambda one: one.timestamp):
            if not self._is_new(prediction):
                continue
            one = _Open(prediction)
            happened = times.get(prediction.failure_type, [])
            for at in happened[bisect_right(happened, prediction.timestamp) :][:1]:
                one.meet(prediction.failure_type, at)
            for began, ended in watched[bisect_right(ends, prediction.timestamp) :]:
                if began >= one.until:
                    break
                one.see(began, ended, is_known=True)
            settled = self._decide(one, now, meant=False, attempts=attempts)
            if settled is None:
                self._keep(one)
            else:
                found.append(settled)
        return found

    # -- inside -------------------------------------------------------------------------------------------------

    def _is_new(self, prediction: FailurePrediction) -> bool:
        known = prediction.prediction_id in self._open or prediction.prediction_id in self._settled_ids
        return prediction.outcome is PredictionOutcome.OPEN and not known

    def _keep(self, one: _Open) -> None:
        self._open[one.prediction.prediction_id] = one
        if len(self._open) > MOST_OPEN:
            _, oldest = self._open.popitem(last=False)
            self._pushed_out.append(oldest)
            self._remember(oldest)

    def _note_failures(self, episodes: Iterable[Episode]) -> None:
        for episode in episodes:
            noted = (episode.failure_type, episode.happened_at)
            if noted in self._failures:
                continue
            self._failures.append(noted)
            for one in self._open.values():
                one.meet(*noted)

    def _forget_after(self, now: float) -> None:
        """The clock was set back: what is noted of times that are to come says nothing of them."""
        self._looks.clear()
        self._failures = deque((one for one in self._failures if one[1] <= now), FAILURES_REMEMBERED)
        self._mitigated_at = deque((at for at in self._mitigated_at if at <= now), MITIGATIONS_REMEMBERED)

    def _note_look(self, began: float, ended: float, *, is_known: bool) -> None:
        looks = self._looks
        looks.append((began, ended, is_known))
        while looks[0][1] < ended - REMEMBERED_SECONDS:
            looks.popleft()

    def _decide(
        self, one: _Open, now: float, *, meant: bool, attempts: Collection[float] | None = None
    ) -> Settled | None:
        prediction = one.prediction
        if one.happened_at is not None:
            lead = one.happened_at - prediction.timestamp
            words = f"it happened {lead:.0f} s after it was predicted"
            return self._settle(one, now, PredictionOutcome.HAPPENED, words, lead)
        if not one.makes_sense:
            return self._settle(one, now, PredictionOutcome.CENSORED, "its time or its horizon makes no sense")
        if prediction.timestamp > now + self._longest_hole:
            return self._settle(one, now, PredictionOutcome.CENSORED, "the clock was set back behind it")
        first, until = prediction.timestamp, one.until
        was_mitigated = any(first <= at <= until for at in (self._mitigated_at if attempts is None else attempts))
        if now < until:
            if meant and not was_mitigated:
                words = "somebody stopped, paused or restarted the server before its horizon ended"
                return self._settle(one, now, PredictionOutcome.CENSORED, words)
            return None
        one.see(until, until, is_known=False)
        if one.unseen_seconds > MOST_UNSEEN_RATIO * (until - first) or one.longest_hole_seconds > self._longest_hole:
            words = f"for {one.unseen_seconds:.0f} s of {until - first:.0f} s nobody could tell"
            return self._settle(one, now, PredictionOutcome.CENSORED, words)
        if prediction.failure_type not in FAILURE_TYPES:
            words = f"nobody can tell when {prediction.failure_type} has happened"
            return self._settle(one, now, PredictionOutcome.CENSORED, words)
        if was_mitigated:
            return self._settle(one, now, PredictionOutcome.MITIGATED, "something was done against it in time")
        words = f"it did not happen within {until - first:.0f} s"
        return self._settle(one, now, PredictionOutcome.DID_NOT_HAPPEN, words)

    def _settle(
        self, one: _Open, now: float, outcome: PredictionOutcome, reason: str, lead_seconds: float | None = None
    ) -> Settled:
        self._remember(one)
        return Settled(one.prediction, outcome, now, reason, lead_seconds)

    def _remember(self, one: _Open) -> None:
        self._settled_ids[one.prediction.prediction_id] = None
        while len(self._settled_ids) > SETTLED_REMEMBERED:
            self._settled_ids.popitem(last=False)


class _Open:
    """A prediction and what has been seen of its horizon."""

    __slots__ = (
        "_hole_seconds",
        "_seen_until",
        "happened_at",
        "longest_hole_seconds",
        "makes_sense",
        "prediction",
        "unseen_seconds",
        "until",
    )

    def __init__(self, prediction: FailurePrediction) -> None:
        self.prediction = prediction
        self.until = prediction.timestamp + prediction.horizon_seconds
        self.makes_sense = math.isfinite(self.until) and prediction.horizon_seconds > 0.0
        self.happened_at: float | None = None
        self.unseen_seconds = 0.0
        self.longest_hole_seconds = 0.0
        self._hole_seconds = 0.0
        self._seen_until = prediction.timestamp

    def meet(self, failure_type: str, at: float) -> None:
        """A failure has happened; the first that fits counts."""
        prediction = self.prediction
        fits = failure_type == prediction.failure_type and prediction.timestamp < at <= self.until
        if fits and self.happened_at is None:
            self.happened_at = at

    def see(self, began: float, ended: float, *, is_known: bool) -> None:
        """What was known of a stretch of time; stretches come in order, and what lies between two was not seen."""
        ended = min(ended, self.until)
        if not self.makes_sense or ended < self._seen_until:
            return
        began = min(max(began, self._seen_until), ended)
        self._miss(began - self._seen_until)
        if not is_known:
            self._miss(ended - began)
        elif ended > began:
            self._hole_seconds = 0.0
        self._seen_until = ended

    def _miss(self, seconds: float) -> None:
        self.unseen_seconds += seconds
        self._hole_seconds += seconds
        self.longest_hole_seconds = max(self.longest_hole_seconds, self._hole_seconds)
