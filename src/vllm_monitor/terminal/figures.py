"""The table of figures: now, usually, and how it went."""

from __future__ import annotations

import math

from rich.text import Text

from vllm_monitor.terminal import format as human
from vllm_monitor.terminal.arrange import Section
from vllm_monitor.terminal.conditions import CALM
from vllm_monitor.terminal.figure_list import COMPACT, FULL, Figure
from vllm_monitor.terminal.history import TargetHistory
from vllm_monitor.terminal.safe_text import Script
from vllm_monitor.terminal.sparkline import sparkline
from vllm_monitor.terminal.tables import Cell, indented, line

__all__ = ["figures_section"]

_LABEL_WIDTH = 13
_WIDE_NOW = 18  # room for two latencies
_NARROW_NOW = 11
_FEWEST_TICKS = 60
_WIDEST_SPARKLINE = 120
_NARROWEST_SPARKLINE = 6
# The first eight rows of COMPACT answer "is it serving, and how fast"; fewer than four are no table.
_FEWEST_ROWS = 4
_ROWS_ON_SMALL_SCREENS = 8
# A figure has moved when it is this many times its usual value, or this part of it.
_MOVED_TIMES = 2.0
_MOVED_SHARE = 0.1


def figures_section(history: TargetHistory, width: int, script: Script, *, roomy: bool, priority: int) -> Section:
    """The figures of a target.

    Args:
        history: The target.
        width: Cells.
        script: Characters of the terminal.
        roomy: Whether there is room for all figures; otherwise the eight most telling ones.
        priority: See :class:`~vllm_monitor.terminal.arrange.Section`.
    """

    def build(height: int) -> list[Text]:
        whole = height > len(FULL)
        table = _FigureTable(history, width - 1, script, _NARROW_NOW if whole else _WIDE_NOW)
        rows = FULL if whole else COMPACT
        return [indented(table.header()), *(indented(table.row(figure)) for figure in rows[: height - 1])]

    wanted = len(FULL) if roomy else _ROWS_ON_SMALL_SCREENS
    return Section(build, 1 + wanted, 1 + _FEWEST_ROWS, priority)


class _FigureTable:
    """Decides once how wide the columns are and how much time a sparkline shows, then writes rows."""

    def __init__(self, history: TargetHistory, width: int, script: Script, now_width: int) -> None:
        self._history = history
        self._width = width
        self._script = script
        self._now_width = now_width
        self._fixed_width = _LABEL_WIDTH + 1 + now_width + 1 + 1 + 1 + human.MAX_WIDTH + 1
        points = min(_WIDEST_SPARKLINE, width - self._fixed_width)
        self._points = points if points >= _NARROWEST_SPARKLINE else 0
        ticks = history.ticks_worth_showing(_FEWEST_TICKS)
        self._ticks_per_point = math.ceil(ticks / self._points) if self._points else 1

    def header(self) -> Text:
        history = self._history
        usual = "typical"
        if history.snapshot.condition not in CALM:
            usual = f"when {history.usual_condition.value}" if history.usual_condition else "before"
        span = human.duration(history.span_seconds(self._points * self._ticks_per_point))
        return self._line(
            Cell("figure", _LABEL_WIDTH, "dim"),
            Cell("now", self._now_width, "dim", right=True),
            Cell("", 1),
            Cell(usual, human.MAX_WIDTH, "dim", right=True),
            Cell(f"last {span}", self._points, "dim", right=True),
        )

    def row(self, figure: Figure) -> Text:
        history, script = self._history, self._script
        value = history.snapshot.values.get(figure.name)
        usual = history.usual(figure.name)
        moved, style = self._movement(figure, value, usual)
        series = history.squeezed(figure.name, self._points, self._ticks_per_point)
        drawn = sparkline(series, self._points, top=figure.top, unicode=script.unicode)
        return self._line(
            Cell(figure.label, _LABEL_WIDTH),
            Cell(self._written(figure, value), self._now_width, f"bold {style}".strip(), right=True),
            Cell(moved, 1, style),
            Cell(figure.write(usual), human.MAX_WIDTH, "dim", right=True),
            Cell(drawn, self._points, "cyan", raw=True),
        )

    def _written(self, figure: Figure, value: float | None) -> str:
        """The value with what is written beside it; one ``-`` when nothing of it is known."""
        values = self._history.snapshot.values
        names = filter(None, (figure.beside, figure.name, figure.limit))
        parts = [figure.write(value if name == figure.name else values.get(name)) for name in names]
        return human.UNKNOWN if set(parts) == {human.UNKNOWN} else " / ".join(parts)

    def _movement(self, figure: Figure, value: float | None, usual: float | None) -> tuple[str, str]:
        """An arrow and its colour when a figure left its usual value; only in trouble: calm is quiet."""
        if self._history.snapshot.condition in CALM or value is None or usual is None:
            return "", ""
        if figure.top is not None and abs(value - usual) < _MOVED_SHARE * figure.top:
            return "", ""
        if value > usual * _MOVED_TIMES:
            return self._script.rose, "yellow"
        if value < usual / _MOVED_TIMES:
            return self._script.fell, "yellow"
        return "", ""

    def _line(self, label: Cell, now: Cell, moved: Cell, usual: Cell, drawn: Cell) -> Text:
        """The cells for which there is room, the least important ones left out first."""
        if self._points:
            cells = [label, now, moved, usual, drawn]
        elif self._width >= self._fixed_width - 1:
            cells = [label, now, moved, usual]
        elif self._width >= _LABEL_WIDTH + 1 + self._now_width:
            cells = [label, now]
        else:
            cells = [label]
        return line(cells, self._script)
