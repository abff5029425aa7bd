"""The time by which retention judges ages: the wall clock, as far as it can be believed.

A host whose clock is set to 2099 for a minute must not lose its history to that minute. So the store remembers
what time it was when retention last looked (``store_meta``, key ``retention_clock``), by the wall clock and by the
monotonic one, and

* believes the wall clock while it has moved as the monotonic clock says, give or take a day;
* after a bigger step, in either direction, counts with the earlier of the two times, until the clock has run on
  from its new place, without another step, for a day of running time (of any process of the store);
* believes a step forward of up to a year at once when a person asks for retention now: the store may just have
  been away for that long.

So a clock that is set back deletes nothing, and neither does one that is set forward and corrected within a day.
A monitor that was off for longer than a day deletes a day later than it could.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, func, insert, select, update

from vllm_monitor.persistence import schema
from vllm_monitor.persistence.maintenance.short_transactions import ShortTransactions

__all__ = ["ClockMemory", "doubtful_step_seconds", "look_at_clock"]

_LOG = logging.getLogger(__name__)
_KEY = "retention_clock"
_DAY_SECONDS = 86_400.0
_YEAR_SECONDS = 366 * _DAY_SECONDS
_SET_BACK_TOLERANCE_SECONDS = 3_600.0
_WORTH_NOTING_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class ClockMemory:
    """What the store remembers of the clock.

    Args:
        trusted: Unix seconds that were believed at the last look.
        seen: Unix seconds that the wall clock showed then.
        monotonic: Seconds that the monotonic clock showed then.
        steady_seconds: How long the wall clock has run on since a step that is not believed yet.
    """

    trusted: float
    seen: float
    monotonic: float
    steady_seconds: float = 0.0

    def after(self, now: float, monotonic: float, *, asked: bool) -> ClockMemory:
        """The memory after another look."""
        # The monotonic clock starts again with the host; then it says nothing about what lies between.
        passed = max(0.0, monotonic - self.monotonic)
        due = self.trusted + passed
        ran_on = -_SET_BACK_TOLERANCE_SECONDS <= now - self.seen - passed <= _DAY_SECONDS
        steady = self.steady_seconds + passed if ran_on else 0.0
        away = asked and 0 < now - due <= _YEAR_SECONDS
        if abs(now - due) <= _DAY_SECONDS or steady >= _DAY_SECONDS or away:
            return ClockMemory(now, now, monotonic)
        return ClockMemory(due, now, monotonic, steady)


def look_at_clock(hand: ShortTransactions, now: float, monotonic: float, *, asked: bool) -> float:
    """Look at the clock: unix seconds that no step of it has carried into the future.

    Args:
        hand: The store.
        now: Unix seconds of the wall clock.
        monotonic: Seconds of the monotonic clock.
        asked: Whether a person asked for retention now.
    """
    with hand.reading() as connection:
        known = _recall(connection)
        base = known if known is not None else _first(connection, now, monotonic)
    memory = base.after(now, monotonic, asked=asked)
    if memory.trusted != now and base.trusted == base.seen:
        _LOG.warning("the clock stepped by %.0f s; retention does not believe it yet", now - memory.trusted)
    if known is None or _is_worth_noting(known, memory):
        with hand.writing() as connection:
            _remember(connection, memory)
    return min(now, memory.trusted)


def doubtful_step_seconds(connection: Connection) -> float:
    """By how much the wall clock was ahead of the believed time at the last look; 0 when it was believed."""
    known = _recall(connection)
    return 0.0 if known is None else known.seen - known.trusted


def _is_worth_noting(known: ClockMemory, memory: ClockMemory) -> bool:
    """Whether it is worth a write: a look that only confirms is noted every few minutes."""
    is_same = (known.trusted == known.seen) == (memory.trusted == memory.seen)
    moved = max(abs(memory.seen - known.seen), abs(memory.trusted - known.trusted))
    return not is_same or moved >= _WORTH_NOTING_SECONDS or memory.monotonic < known.monotonic


def _first(connection: Connection, now: float, monotonic: float) -> ClockMemory:
    """What is believed of a store that remembers nothing: the newest time in it, or that of its making."""
    facts, blocks = schema.store_meta, schema.blocks
    made = connection.execute(select(facts.c.value).where(facts.c.key == "created_at")).scalar()
    newest_ms = connection.execute(select(func.max(blocks.c.end_ms))).scalar()
    times = [_number(made), None if newest_ms is None else newest_ms / 1000]
    known = [time for time in times if time is not None]
    trusted = min(now, max(known)) if known else now
    return ClockMemory(trusted, now, monotonic)


def _recall(connection: Connection) -> ClockMemory | None:
    table = schema.store_meta
    text = connection.execute(select(table.c.value).where(table.c.key == _KEY)).scalar()
    try:
        memory = None if text is None else ClockMemory(**json.loads(text))
        if memory is not None and not all(map(math.isfinite, asdict(memory).values())):
            raise ValueError(text)
    except (ValueError, TypeError):
        _LOG.warning("what the store remembered of the clock is not readable, and is made anew")
        return None
    return memory


def _remember(connection: Connection, memory: ClockMemory) -> None:
    table, text = schema.store_meta, json.dumps(asdict(memory))
    if not connection.execute(update(table).where(table.c.key == _KEY).values(value=text)).rowcount:
        connection.execute(insert(table), {"key": _KEY, "value": text})


def _number(text: str | None) -> float | None:
    try:
        number = math.nan if text is None else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
