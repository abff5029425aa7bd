from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from vllm_monitor.terminal.safe_text import Script, without_scheme


@pytest.mark.parametrize(
    ("hostile", "harmless"),
    [
        ("[red]alarm[/red]", "[red]alarm[/red]"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07name", "name"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\x9b2Jb", "ab"),
        ("one\r\ntwo\tthree\x00", "one two three"),
        ("safe\u202egnp.exe", "safegnp.exe"),
        ("zero\u200bwidth", "zerowidth"),
        ("lone \ud800 surrogate", "lone surrogate"),
        ("naïve 模型", "naïve 模型"),
    ],
)
def test_clean(hostile: str, harmless: str) -> None:
    assert Script().clean(hostile) == harmless


def test_an_ascii_terminal_gets_ascii() -> None:
    script = Script("ascii")
    assert not script.unicode
    assert script.clean("naïve 模型") == "na?ve ??"
    for mark in (script.ellipsis, script.separator, script.rose, script.fell, script.rule):
        assert mark.isascii()


@given(st.text(max_size=200), st.integers(0, 60), st.sampled_from(["utf-8", "ascii", "latin-1"]))
def test_nothing_is_wider_than_asked_or_unprintable(text: str, width: int, encoding: str) -> None:
    script = Script(encoding)
    for fitted in (script.fit(text, width), script.fit_middle(text, width), *script.wrap(text, max(2, width), 3)):
        assert cell_len(fitted) <= max(2, width)
        assert fitted.isprintable()
        fitted.encode(encoding)
    assert cell_len(script.fit(text, width)) <= width
    assert cell_len(script.fit_middle(text, width)) <= width


@given(st.text(max_size=300), st.integers(2, 40), st.integers(1, 4))
def test_wrapping_keeps_within_its_lines_and_says_when_it_cut(text: str, width: int, most: int) -> None:
    script = Script()
    lines = script.wrap(text, width, most)
    assert len(lines) <= most
    everything = script.clean(text).replace(" ", "")
    if "".join(lines).replace(" ", "") != everything:
        assert not lines or lines[-1].endswith("…")  # a mark that joins the letter before it, alone, has no width


def test_cutting() -> None:
    script = Script()
    assert script.fit("abcdef", 4) == "abc…"
    assert script.fit_middle("http://host-with-a-name:8000", 15) == "http://…me:8000"
    assert script.wrap("one two three four", 8, 2) == ["one two", "three f…"]
    assert without_scheme("https://a:1") == "a:1"
    assert without_scheme("a:1") == "a:1"
