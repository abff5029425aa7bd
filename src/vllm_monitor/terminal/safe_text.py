"""Text of others made harmless, and fitted into cells.

Labels, model names, reasons and log lines come from servers we do not control. Here they lose escape
sequences, control and direction codes; what is left is wrapped in rich ``Text``, which reads no markup.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells, set_cell_size

__all__ = ["Script", "without_scheme"]

# Longest text we look at: a screen holds a few thousand cells, and a hostile label may be megabytes.
_MAX_CHARACTERS = 4000

_ESCAPE_SEQUENCE = re.compile(
    r"\x1b\][^\x07\x1b\x9c]{0,2000}(?:\x07|\x1b\\|\x9c)?"  # OSC: window titles, links, clipboard
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # CSI: colours, cursor
    r"|\x1b[PX^_][^\x1b\x9c]{0,2000}(?:\x1b\\|\x9c)?"  # device control strings
    r"|\x1b[ -/]*[0-~]?"
)


@dataclass(frozen=True, slots=True)
class Script:
    """The characters a terminal can show, and how text is made to fit them.

    Args:
        encoding: The encoding of the terminal, as Python names it.
    """

    encoding: str = "utf-8"

    @property
    def unicode(self) -> bool:
        """Whether block characters and the like can be shown."""
        return self.encoding.lower().replace("-", "").startswith("utf")

    @property
    def ellipsis(self) -> str:
        """Marks text that was cut; one or two cells."""
        return "…" if self.unicode else ".."

    @property
    def separator(self) -> str:
        """Stands between facts of one line."""
        return " · " if self.unicode else " | "

    @property
    def rose(self) -> str:
        """Marks a figure well above its usual value; one cell."""
        return "▲" if self.unicode else "^"

    @property
    def fell(self) -> str:
        """Marks a figure well below its usual value; one cell."""
        return "▼" if self.unicode else "v"

    @property
    def rule(self) -> str:
        """Draws a line; one cell."""
        return "─" if self.unicode else "-"

    def clean(self, text: str) -> str:
        """The text on one line, without escape sequences, controls and what the encoding cannot say."""
        if len(text) > _MAX_CHARACTERS:
            text = text[:_MAX_CHARACTERS]
        if not (text.isascii() and text.isprintable()):
            text = _ESCAPE_SEQUENCE.sub("", text)
            text = "".join(_harmless(character) for character in text)
            text = text.encode(self.encoding, "replace").decode(self.encoding, "replace")
        return " ".join(text.split())

    def fit(self, text: str, width: int) -> str:
        """Clean text in at most ``width`` cells, its end cut with an ellipsis when it is longer."""
        text = self.clean(text)
        if cell_len(text) <= width:
            return text
        mark = self.ellipsis
        if width <= len(mark):
            return mark[: max(0, width)]
        return set_cell_size(text, width - len(mark)).rstrip() + mark

    def fit_middle(self, text: str, width: int) -> str:
        """Likewise with the middle cut: both ends of a URL or a model path tell more than its start."""
        text = self.clean(text)
        mark = self.ellipsis
        if cell_len(text) <= width or width < len(mark) + 4:
            return self.fit(text, width)
        tail_width = (width - len(mark)) // 2
        head = set_cell_size(text, width - len(mark) - tail_width)
        tail = ""
        for character in reversed(text):
            if cell_len(character + tail) > tail_width:
                break
            tail = character + tail
        return f"{head}{mark}{tail}"

    def wrap(self, text: str, width: int, max_lines: int) -> list[str]:
        """Clean text in at most ``max_lines`` lines of ``width`` cells; the last says when more was cut."""
        lines: list[str] = []
        current = ""
        pieces = [piece for word in self.clean(text).split() for piece in chop_cells(word, max(1, width))]
        for index, piece in enumerate(pieces):
            joined = f"{current} {piece}" if current else piece
            if cell_len(joined) <= width:
                current = joined
                continue
            if len(lines) == max_lines - 1:
                return [*lines, self.fit(" ".join([current, *pieces[index:]]), width)]
            lines.append(current)
            current = piece
        return [*lines, current] if current else lines


def without_scheme(target: str) -> str:
    """A URL without ``http://`` and the like, for places where every cell counts."""
    return target.partition("://")[2] or target


def _harmless(character: str) -> str:
    if character.isprintable():
        return character
    # Format codes (zero width, right to left) vanish; controls, separators and stray surrogates are a space.
    return "" if unicodedata.category(character) == "Cf" else " "
