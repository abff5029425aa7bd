"""Columns of one line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from vllm_monitor.terminal.safe_text import Script

__all__ = ["Cell", "facts", "indented", "line", "spread"]


@dataclass(frozen=True, slots=True)
class Cell:
    """Text in a column of fixed width.

    Args:
        text: What to show; it is cleaned and cut to the width.
        width: Cells of the column.
        style: Rich style.
        right: Whether it stands at the right end of its column.
        raw: The text is ours and blanks in it matter (a sparkline).
    """

    text: str
    width: int
    style: str = ""
    right: bool = False
    raw: bool = False


def line(cells: Iterable[Cell], script: Script) -> Text:
    """One line of cells, one blank between them."""
    result = Text(no_wrap=True)
    for number, cell in enumerate(cells):
        text = cell.text if cell.raw else script.fit(cell.text, cell.width)
        padding = " " * (cell.width - cell_len(text))
        if number:
            result.append(" ")
        result.append(padding + text if cell.right else text, style=cell.style)
        if not cell.right:
            result.append(padding)
    return result


def facts(parts: Iterable[tuple[str, str]], width: int, script: Script) -> Text:
    """Pairs of text and style in one line; those at the end that do not fit are left out whole."""
    result = Text(no_wrap=True)
    for part, style in parts:
        text = script.clean(part)
        separator = script.separator if result else ""
        room = width - result.cell_len - len(separator)
        if result and cell_len(text) > room:
            break
        result.append(separator, style="dim")
        result.append(script.fit(text, room), style=style)
    return result


def spread(left: Text, right: str, width: int, style: str = "") -> Text:
    """A line with ``right`` at its right end, if both fit."""
    room = width - left.cell_len - cell_len(right)
    if right and room >= 1:
        left.append(" " * room)
        left.append(right, style=style)
    return left


def indented(text: Text) -> Text:
    """The text one cell to the right."""
    return Text(" ", no_wrap=True).append_text(text)
