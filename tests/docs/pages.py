"""The pages of the documentation, taken apart: fenced blocks, prose, sections, tables, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
README = REPOSITORY / "README.md"
DOCS = REPOSITORY / "docs"
PAGES = (README, REPOSITORY / "CHANGELOG.md", *sorted(DOCS.glob("**/*.md")))

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})\s*(\S*)")
_HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*\s*$")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    return [block for block, _ in _parts(page) if block is not None]


def blocks_of_all(*languages: str) -> list[Block]:
    """The fenced blocks of all pages that are in one of some languages."""
    return [block for page in PAGES for block in blocks(page) if block.language in languages]


def prose(page: Path) -> list[str]:
    """The lines of a page that are in no fenced block."""
    return [line for block, line in _parts(page) if block is None]


def section(page: Path, heading: str) -> str:
    """The prose under a heading, up to the next heading of its level or a higher one."""
    level, found = 0, []
    for line in prose(page):
        match = _HEADING.match(line)
        if match and level and len(match[1]) <= level:
            break
        if match and not level and match[2].strip("`") == heading:
            level = len(match[1])
        elif level:
            found.append(line)
    assert level, f"{page.name} has no heading {heading!r}"
    return "\n".join(found)


def table_rows(text: str) -> list[list[str]]:
    """The cells of all table rows in some prose, without the lines of dashes."""
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        for line in text.splitlines()
        if line.lstrip().startswith("|")
    ]
    return [row for row in rows if not all(set(cell) <= set("-: ") for cell in row)]


def code_spans(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`\n]+)`", text)


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may name, as GitHub makes it."""
    found: set[str] = set()
    for line in prose(page):
        match = _HEADING.match(line)
        if match:
            words = re.sub(r"[^\w\- ]", "", match[2].lower())
            anchor = words.strip().replace(" ", "-")
            assert anchor not in found, f"{page.name} has two headings {match[2]!r}: links to them are unclear"
            found.add(anchor)
    return found


def links(page: Path) -> list[str]:
    """Where the links and images of a page lead."""
    return [match[1] for line in prose(page) for match in _LINK.finditer(re.sub(r"`[^`]*`", "", line))]


def _parts(page: Path) -> Iterator[tuple[Block | None, str]]:
    """Each line of prose by itself, and each fenced block as a whole."""
    fence, language, start, inside = "", "", 0, list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        match = _FENCE.match(line)
        if not fence and match:
            fence, language, start, inside = match[1], match[2], number, []
        elif fence and match and match[1].startswith(fence) and not match[2]:
            yield Block(page, start, language, "\n".join(inside) + "\n"), ""
            fence = ""
        elif fence:
            inside.append(line)
        else:
            yield None, line
    assert not fence, f"{page.name}: the block of line {start} is never closed"
