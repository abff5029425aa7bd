"""Shares out the lines of a screen among its sections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.text import Text

__all__ = ["LUXURY", "Section", "arrange", "beside", "blank", "fixed"]


LUXURY = 50
"""Sections of this priority and above come only when all others have what they want."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the screen.

    Args:
        build: Makes at most the given number of lines, each no wider than the screen.
        wanted: Lines with which it shows everything.
        minimum: Lines below which it is left out.
        priority: Sections with smaller numbers are served first.
    """

    build: Callable[[int], list[Text]]
    wanted: int
    minimum: int = 1
    priority: int = 0


def fixed(lines: Sequence[Text], *, priority: int = 0, minimum: int | None = None) -> Section:
    """A section of these lines; with fewer lines its end is missing."""
    return Section(
        lambda height: list(lines[:height]),
        len(lines),
        len(lines) if minimum is None else minimum,
        priority,
    )


def blank(priority: int = LUXURY + 1) -> Section:
    """An empty line, where there is room to spare."""
    return fixed([Text()], priority=priority)


def arrange(sections: Sequence[Section], height: int) -> list[Text]:
    """Lines of all sections in order, at most ``height``.

    Every section first gets its minimum, in the order of priority and as long as there is room; what is left
    is given out in the same order. Luxuries share what nobody else wants.
    """
    order = sorted(range(len(sections)), key=lambda index: sections[index].priority)
    granted = [0] * len(sections)
    left = height
    for chosen in (
        [index for index in order if sections[index].priority < LUXURY],
        [index for index in order if sections[index].priority >= LUXURY],
    ):
        left = _grant(sections, chosen, granted, left)
    lines: list[Text] = []
    for section, share in zip(sections, granted, strict=True):
        if share:
            lines += section.build(share)[:share]
    return lines


def _grant(sections: Sequence[Section], order: Sequence[int], granted: list[int], left: int) -> int:
    """Give lines to the sections of ``order``; the number of lines that remain."""
    for index in order:
        section = sections[index]
        need = min(section.minimum, section.wanted)
        if 0 < need <= left:
            granted[index] = need
            left -= need
    for index in order:
        if granted[index]:
            more = min(left, sections[index].wanted - granted[index])
            granted[index] += more
            left -= more
    return left


def beside(
    left: Sequence[Section],
    left_width: int,
    right: Sequence[Section],
    *,
    gap: int = 2,
    minimum: int = 1,
    priority: int = 0,
) -> Section:
    """Two columns of sections as one section; the sections of the left one keep within ``left_width``."""

    def build(height: int) -> list[Text]:
        left_lines, right_lines = arrange(left, height), arrange(right, height)
        rows = max(len(left_lines), len(right_lines))
        lines = []
        for row in range(rows):
            line = left_lines[row].copy() if row < len(left_lines) else Text()
            if row < len(right_lines):
                line.append(" " * (left_width + gap - line.cell_len))
                line.append_text(right_lines[row])
            lines.append(line)
        return lines

    wanted = max(sum(section.wanted for section in left), sum(section.wanted for section in right))
    return Section(build, wanted, minimum, priority)
