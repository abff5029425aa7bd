"""What was seen of one target over the last ticks, and what its figures were while all was well."""

from __future__ import annotations

import math
import statistics
from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Iterable

from vllm_monitor.picture.snapshot import Snapshot
from vllm_monitor.records import Condition, ProcessInfo
from vllm_monitor.terminal.conditions import CALM
from vllm_monitor.terminal.figure_list import TRACKED

__all__ = ["HISTORY_TICKS", "TargetHistory"]

HISTORY_TICKS = 240
"""Ticks that are remembered per target: the widest sparkline and a baseline before it."""

_BASELINE_TICKS = 60
_FEWEST_BASELINE_TICKS = 5
# A tick this many times later than usual left room for others; they are drawn as a gap.
_LATE_TICKS = 2.5
_GAP = math.nan


class TargetHistory:
    """The recent past of one target. Bounded memory; not thread-safe (the view holds a lock).

    Args:
        first: The first snapshot of the target.
    """

    def __init__(self, first: Snapshot) -> None:
        self._rows: deque[tuple[float, Condition | None, array[float]]] = deque(maxlen=HISTORY_TICKS)
        self._ticks_seen = 0
        self._intervals: deque[float] = deque(maxlen=9)
        self._cpu_seconds: dict[int, tuple[float, ProcessInfo]] = {}
        self._usual: dict[str, float] = {}
        self.snapshot = first
        self.mentioned_at = first.timestamp
        self.usual_condition: Condition | None = None
        self.cpu_percent: dict[int, float] = {}
        self.had_processes = False
        self.seconds_in: defaultdict[Condition, float] = defaultdict(float)
        self.times_entered: Counter[Condition] = Counter()
        self._append(first)
        self.times_entered[first.condition] += 1
        self._measure_cpu(first)

    def observe(self, snapshot: Snapshot) -> None:
        """Take the snapshot of the next tick; one that was taken before changes nothing."""
        previous = self.snapshot
        if snapshot is previous or snapshot.timestamp == previous.timestamp:
            return
        elapsed = snapshot.timestamp - previous.timestamp
        if elapsed > 0:
            self.seconds_in[previous.condition] += elapsed
            self._fill_gap(previous.timestamp, elapsed)
        if snapshot.condition is not previous.condition:
            self.times_entered[snapshot.condition] += 1
            if previous.condition in CALM and snapshot.condition not in CALM:
                self._remember_usual(snapshot.condition_since)
        self.snapshot = snapshot
        self._append(snapshot)
        self._measure_cpu(snapshot)

    def series(self, name: str, ticks: int) -> list[float]:
        """The last values of a tracked name, oldest first, NaN where there was none."""
        column = TRACKED.index(name)
        return [values[column] for _, _, values in self._tail(ticks)]

    def squeezed(self, name: str, points: int, ticks_per_point: int) -> list[float]:
        """Means over groups of ticks, at most ``points`` of them, oldest first, NaN where nothing was known.

        Groups keep their ticks as time passes, so that a drawing moves and does not shimmer.
        """
        column = TRACKED.index(name)
        first = self._ticks_seen - len(self._rows)
        groups: dict[int, list[float]] = {}
        for number, (_, _, values) in enumerate(self._rows, first):
            group = groups.setdefault(number // ticks_per_point, [])
            if not math.isnan(values[column]):
                group.append(values[column])
        means = [sum(value / len(group) for value in group) if group else _GAP for group in groups.values()]
        return means[-points:] if points > 0 else []

    def ticks_worth_showing(self, fewest: int) -> int:
        """As many ticks as it takes to see the present trouble begin, and at least ``fewest``."""
        if self.snapshot.condition in CALM:
            return fewest
        troubled = (self.snapshot.timestamp - self.snapshot.condition_since) / self.interval_seconds
        return max(fewest, min(HISTORY_TICKS, math.ceil(max(0.0, troubled) * 1.5)))

    def span_seconds(self, ticks: int) -> float:
        """How long ago the first of the last ``ticks`` values was."""
        rows = self._tail(ticks)
        return max(0.0, rows[-1][0] - rows[0][0])

    def usual(self, name: str) -> float | None:
        """The median of a tracked name before the present trouble began; in calm, of what is remembered."""
        if self.snapshot.condition in CALM:
            return _median(self.series(name, _BASELINE_TICKS))
        return self._usual.get(name)

    @property
    def interval_seconds(self) -> float:
        """The usual time between two ticks; 1 before there were two."""
        return statistics.median(self._intervals) if self._intervals else 1.0

    def _tail(self, ticks: int) -> list[tuple[float, Condition | None, array[float]]]:
        return list(self._rows)[-max(1, ticks) :]

    def _append(self, snapshot: Snapshot) -> None:
        values = array("d", [snapshot.values.get(name, _GAP) for name in TRACKED])
        self._rows.append((snapshot.timestamp, snapshot.condition, values))
        self._ticks_seen += 1

    def _fill_gap(self, last: float, elapsed: float) -> None:
        interval = self.interval_seconds
        if elapsed > interval * _LATE_TICKS and self._intervals:
            missed = min(HISTORY_TICKS, round(elapsed / interval) - 1)
            nothing = array("d", [_GAP] * len(TRACKED))
            self._ticks_seen += missed
            self._rows.extend((last + number * interval, None, nothing) for number in range(1, missed + 1))
        self._intervals.append(elapsed)

    def _remember_usual(self, trouble_since: float) -> None:
        rows = [row for row in self._rows if row[1] in CALM and row[0] < trouble_since]
        busy = [row for row in rows if row[1] is Condition.OK]
        # A server that was idle a moment ago is better compared with when it last had work.
        chosen = busy if len(busy) >= _FEWEST_BASELINE_TICKS else rows
        chosen = chosen[-_BASELINE_TICKS:]
        self.usual_condition = chosen[-1][1] if chosen else None
        medians = {name: _median(values[column] for _, _, values in chosen) for column, name in enumerate(TRACKED)}
        self._usual = {name: median for name, median in medians.items() if median is not None}

    def _measure_cpu(self, snapshot: Snapshot) -> None:
        """CPU use between two looks at a process; the same object again means nobody looked anew."""
        self.had_processes = self.had_processes or bool(snapshot.processes)
        looks: dict[int, tuple[float, ProcessInfo]] = {}
        percent: dict[int, float] = {}
        for process in snapshot.processes:
            seen_at, before = self._cpu_seconds.get(process.pid, (math.nan, None))
            if before is process:
                looks[process.pid] = (seen_at, process)
                if process.pid in self.cpu_percent:
                    percent[process.pid] = self.cpu_percent[process.pid]
                continue
            looks[process.pid] = (snapshot.timestamp, process)
            if before is None:
                continue
            elapsed = snapshot.timestamp - seen_at
            used = process.cpu_seconds - before.cpu_seconds
            if elapsed > 0 and used >= 0:  # a reused pid would count backwards
                percent[process.pid] = 100.0 * used / elapsed
        self._cpu_seconds = looks
        self.cpu_percent = percent


def _median(values: Iterable[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else None
