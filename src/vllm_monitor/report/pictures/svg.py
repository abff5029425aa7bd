"""The few shapes that the pictures are made of, as SVG text; foreign text is made harmless here and nowhere else."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable

__all__ = [
    "ACCENT",
    "FAINT",
    "GRID",
    "HEIGHT",
    "INK",
    "MUTED",
    "PAPER",
    "WARNING",
    "WIDTH",
    "badge",
    "circle",
    "document",
    "heading",
    "line",
    "rectangle",
    "shortened",
    "text",
]

WIDTH = 640
HEIGHT = 480
INK = "#1f2933"
MUTED = "#5f6c7b"
FAINT = "#9aa5b1"
GRID = "#e4e7eb"
ACCENT = "#2563c9"
WARNING = "#b45309"
PAPER = "#ffffff"
_MARGIN = 24
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif"
_MOST_CHARACTERS = 200


def text(
    x: float,
    y: float,
    words: str,
    *,
    size: float = 12,
    anchor: str = "start",
    fill: str = INK,
    bold: bool = False,
    upwards: bool = False,
) -> str:
    """Words whose baseline begins, ends or has its middle at a point.

    Args:
        x: Pixels from the left.
        y: Pixels from the top.
        words: Any text; it is shortened and escaped.
        size: Height of the letters in pixels.
        anchor: ``start``, ``middle`` or ``end``.
        fill: Colour.
        bold: Whether it stands out.
        upwards: Whether it is read from bottom to top.
    """
    weight = ' font-weight="600"' if bold else ""
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if upwards else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}" fill="{fill}"{weight}{turn}>'
        f"{_escaped(words)}</text>"
    )


def line(
    x1: float, y1: float, x2: float, y2: float, *, stroke: str = GRID, width: float = 1.0, dashes: str = ""
) -> str:
    """A straight line; ``dashes`` are lengths of dash and gap in pixels."""
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}" '
        f'stroke-width="{width:g}"{dashed}/>'
    )


def rectangle(
    x: float, y: float, width: float, height: float, *, fill: str, opacity: float = 1.0, rounded: float = 0.0
) -> str:
    """A filled rectangle; x and y are its upper left corner."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{max(0.0, height):.1f}" '
        f'fill="{fill}" fill-opacity="{opacity:g}" rx="{rounded:g}"/>'
    )


def circle(x: float, y: float, radius: float, *, fill: str, tooltip: str) -> str:
    """A filled circle with a white rim, and words that a browser shows over it."""
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{fill}" fill-opacity="0.85" stroke="{PAPER}" '
        f'stroke-width="1.5"><title>{_escaped(tooltip)}</title></circle>'
    )


def badge(right: float, y: float, words: str, *, fill: str = WARNING) -> str:
    """Words on a coloured ground that end at ``right``."""
    width = 6.4 * len(words) + 18
    return rectangle(right - width, y, width, 22, fill=fill, rounded=11) + text(
        right - width / 2, y + 15, words, size=11.5, anchor="middle", fill=PAPER, bold=True
    )


def heading(title: str, subtitle: str, warning: str) -> list[str]:
    """Title, a line below it, and at the right what to beware of, when there is something."""
    parts = [text(_MARGIN, 34, title, size=18, bold=True), text(_MARGIN, 54, subtitle, fill=MUTED)]
    return [*parts, badge(WIDTH - _MARGIN, 18, warning)] if warning else parts


def document(title: str, description: str, parts: Iterable[str]) -> str:
    """A whole picture on white paper; title and description are for those who cannot see it."""
    inside = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" font-family="{_FONTS}">\n'
        f"<title>{_escaped(title)}</title>\n<desc>{_escaped(description)}</desc>\n"
        f"{rectangle(0, 0, WIDTH, HEIGHT, fill=PAPER)}\n{inside}\n</svg>\n"
    )


def shortened(words: str, most: int) -> str:
    """Text of at most so many characters; both ends of a URL tell more than its middle, so that is left out."""
    if len(words) <= most:
        return words
    tail = (most - 1) // 2
    return f"{words[: most - 1 - tail]}…{words[-tail:]}"


def _escaped(words: str) -> str:
    """Text that XML takes: no control characters, no stray surrogates, nothing that turns the direction."""
    harmless = "".join(_harmless(character) for character in shortened(words, _MOST_CHARACTERS))
    return html.escape(harmless)


def _harmless(character: str) -> str:
    if character.isprintable():
        return character
    return "" if unicodedata.category(character) == "Cf" else " "
