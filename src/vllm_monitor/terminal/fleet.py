"""Several targets at a glance: one row each, the most urgent first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from vllm_monitor.picture.snapshot import Snapshot
from vllm_monitor.terminal import format as human
from vllm_monitor.terminal.arrange import Section, fixed
from vllm_monitor.terminal.conditions import CALM, badge_style, condition_label, mark_of
from vllm_monitor.terminal.history import TargetHistory
from vllm_monitor.terminal.safe_text import Script, without_scheme
from vllm_monitor.terminal.sparkline import sparkline
from vllm_monitor.terminal.tables import Cell, facts, indented, line, spread
from vllm_monitor.terminal.watched import Watched

__all__ = ["fleet_section", "fleet_title_section"]

_CONDITION_WIDTH = 14
_SPARKLINE_WIDTH = 20
_NARROWEST_TARGET = 18
_NARROWEST_REASON = 24
# The table may take this share of the screen before the details of the most urgent target had their minimum.
_LARGEST_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of numbers; those with a smaller rank stay longest on narrow screens."""

    title: str
    width: int
    rank: int
    write: Callable[[Snapshot], str]


def _lasted(snapshot: Snapshot) -> str:
    return human.duration(max(0.0, snapshot.timestamp - snapshot.condition_since))


_COLUMNS = (
    _Column("for", 10, 0, _lasted),
    _Column("tokens/s", 8, 1, lambda snapshot: human.rate(snapshot.values.get("generation_tokens_per_second"))),
    _Column("run", 5, 3, lambda snapshot: human.rate(snapshot.values.get("requests_running"))),
    _Column("wait", 5, 2, lambda snapshot: human.rate(snapshot.values.get("requests_waiting"))),
    _Column("KV", 7, 4, lambda snapshot: human.ratio(snapshot.values.get("kv_cache_usage_ratio"))),
    _Column(
        "TTFT p95",
        9,
        5,
        lambda snapshot: human.latency(snapshot.values.get("time_to_first_token_p95_seconds")),
    ),
    _Column(
        "ITL p95",
        9,
        6,
        lambda snapshot: human.latency(snapshot.values.get("inter_token_latency_p95_seconds")),
    ),
)


def fleet_title_section(watched: Watched, width: int, script: Script) -> Section:
    """How many targets are in which condition, and what they do together."""
    counts = script.separator.join(f"{number} {name.replace('_', ' ')}" for number, name in watched.condition_counts)
    parts = [
        (f"{len(watched.histories)} targets: {counts}", "bold"),
        (f"{human.rate(watched.total('generation_tokens_per_second'))} tokens/s", ""),
        (f"{human.rate(watched.total('requests_running'))} running", ""),
        (f"{human.rate(watched.total('requests_waiting'))} waiting", ""),
    ]
    right = human.clock_time(watched.last_timestamp)
    if width >= 100:
        right = f"watched {human.duration(watched.duration_seconds)}  {right}"
    left = facts(parts, width - len(right) - 3, script)
    return fixed([indented(spread(left, right, width - 1, "dim"))])


def fleet_section(
    histories: Sequence[TargetHistory], width: int, height: int, script: Script, *, priority: int
) -> Section:
    """The table.

    Args:
        histories: Most urgent first.
        width: Cells of the screen.
        height: Lines of the screen.
        script: Characters of the terminal.
        priority: See :class:`~vllm_monitor.terminal.arrange.Section`.
    """
    table = _FleetTable(histories, width - 1, script)
    minimum = min(1 + len(histories), max(3, int(height * _LARGEST_SHARE)))
    return Section(table.lines, 1 + len(histories), minimum, priority)


class _FleetTable:
    """Decides once which columns fit, then writes rows."""

    def __init__(self, histories: Sequence[TargetHistory], width: int, script: Script) -> None:
        self._histories = histories
        self._script = script
        room = width - _CONDITION_WIDTH - 1
        wished = min(40, max(cell_len(script.clean(history.snapshot.target)) for history in histories))
        target_width = max(min(wished, room), min(_NARROWEST_TARGET, room))
        chosen = []
        used = min(target_width, _NARROWEST_TARGET if width < 80 else 24)
        for column in sorted(_COLUMNS, key=lambda column: column.rank):
            if used + 1 + column.width > room:
                break
            used += 1 + column.width
            chosen.append(column)
        self._columns = [column for column in _COLUMNS if column in chosen]
        left = room - sum(1 + column.width for column in self._columns)
        self._target_width = min(target_width, left)
        left -= self._target_width
        self._sparkline_width = _SPARKLINE_WIDTH if left > _SPARKLINE_WIDTH else 0
        left -= self._sparkline_width + 1 if self._sparkline_width else 0
        self._reason_width = left - 1 if left > _NARROWEST_REASON else 0

    def lines(self, height: int) -> list[Text]:
        shown = self._histories[: height - 1]
        lines = [self._header(), *map(self._row, shown)]
        hidden = self._histories[len(shown) :]
        if hidden and shown:
            hidden = self._histories[len(shown) - 1 :]
            calm = sum(history.snapshot.condition in CALM for history in hidden)
            words = "all well" if calm == len(hidden) else f"{len(hidden) - calm} of them not well"
            lines[-1] = Text(f" and {len(hidden)} more, {words}", style="dim", no_wrap=True)
        return lines

    def _header(self) -> Text:
        cells = [Cell("condition", _CONDITION_WIDTH, "dim"), Cell("target", self._target_width, "dim")]
        cells += [Cell(column.title, column.width, "dim", right=True) for column in self._columns]
        if self._sparkline_width:
            cells.append(Cell("tokens/s lately", self._sparkline_width, "dim", right=True))
        if self._reason_width:
            cells.append(Cell("reason", self._reason_width, "dim"))
        return indented(line(cells, self._script))

    def _row(self, history: TargetHistory) -> Text:
        snapshot = history.snapshot
        words = f"{mark_of(snapshot.condition)} {condition_label(snapshot.condition)}".strip()
        target = self._script.clean(snapshot.target)
        if cell_len(target) > self._target_width:
            target = self._script.fit_middle(without_scheme(target), self._target_width)
        cells = [
            Cell(words.ljust(_CONDITION_WIDTH), _CONDITION_WIDTH, badge_style(snapshot.condition), raw=True),
            Cell(target, self._target_width),
        ]
        cells += [Cell(column.write(snapshot), column.width, right=True) for column in self._columns]
        if self._sparkline_width:
            series = history.series("generation_tokens_per_second", self._sparkline_width)
            drawn = sparkline(series, self._sparkline_width, unicode=self._script.unicode)
            cells.append(Cell(drawn, self._sparkline_width, "cyan", raw=True))
        if self._reason_width:
            cells.append(Cell(snapshot.reason, self._reason_width, "dim"))
        return indented(line(cells, self._script))
