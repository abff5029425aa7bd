"""The pictures show what the program draws today, and refer to nothing outside themselves."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import DOCS, README, REPOSITORY, links

PICTURE = DOCS / "pictures" / "stalled.svg"


def words_of(svg: str) -> str:
    """The text that a picture shows, line by line as it stands in the file, numbers of the store left out."""
    texts = (html.unescape(text).replace("\xa0", " ") for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg))
    return re.sub(r"[\d.]+ [KM]iB", "some KiB", "\n".join(texts))


def test_it_shows_what_the_readme_says() -> None:
    words = words_of(PICTURE.read_text(encoding="utf-8"))
    assert "!! STALLED" in words
    assert "/health 200" in words
    assert "docs/pictures/stalled.svg" in links(README)


def test_it_is_what_the_program_draws_today(tmp_path: Path) -> None:
    tool = REPOSITORY / "tools" / "make_pictures.py"
    subprocess.run([sys.executable, str(tool), str(tmp_path)], check=True, capture_output=True, timeout=60)
    fresh = (tmp_path / PICTURE.name).read_text(encoding="utf-8")
    message = "the view has changed: run `python tools/make_pictures.py`"
    assert words_of(PICTURE.read_text(encoding="utf-8")) == words_of(fresh), message


def test_it_refers_to_nothing_outside() -> None:
    svg = PICTURE.read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\s\"'<)]+", svg)) <= {
        "http://www.w3.org/2000/svg",
        "https://www.textualize.io",  # in a comment
        "http://127.0.0.1:8000",  # the watched server, as text
    }
    for word in ("@font-face", "@import", "<script", "<image", "<foreignObject", "href="):
        assert word not in svg
    assert all(place.startswith("#") for place in re.findall(r"url\(([^)]*)\)", svg))
