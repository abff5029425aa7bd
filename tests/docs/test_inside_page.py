"""docs/inside.md: its table of versions is what the tests of real servers have written down."""

from __future__ import annotations

import json
import os
import re

from tests.docs.pages import DOCS, REPOSITORY, section

PAGE = DOCS / "inside.md"
HEADING = "Which vLLM"
ROWS = REPOSITORY / "tests" / "data" / "compatibility.json"
TABLE = re.compile(r"^\| what \| which \|.*\n(?:\|.*\n)+", re.MULTILINE)
IN_WORDS = ("server", "told")
WORDS = {True: "yes", False: "-"}


def table_of(rows: dict[str, dict[str, bool | str]]) -> str:
    """One line for all of a kind that are the same in each version."""
    versions = sorted(rows, key=lambda version: [int(part) for part in version.split(".")])
    names = sorted({name for row in rows.values() for name in row})
    lines: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name in names:
        kind, _, what = name.rpartition(": ")
        values = [rows[version].get(name, False) for version in versions]
        told = tuple(value if isinstance(value, str) else WORDS[value] for value in values)
        lines.setdefault((kind, told), []).append(what if kind in IN_WORDS else f"`{what}`")
    head = ["| what | which |" + "".join(f" {version} |" for version in versions), "|---|---|" + "---|" * len(versions)]
    body = [f"| {kind} | {', '.join(whats)} | {' | '.join(told)} |" for (kind, told), whats in lines.items()]
    return "\n".join([*head, *body]) + "\n"


def test_the_table_of_versions_is_what_was_seen() -> None:
    table = table_of(json.loads(ROWS.read_text()))
    if os.environ.get("VLLMMON_UPDATE_COMPATIBILITY") == "1":
        PAGE.write_text(TABLE.sub(lambda _: table, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    assert table in section(PAGE, HEADING) + "\n"


def test_every_version_that_is_tried_has_a_row() -> None:
    script = (REPOSITORY / ".ci" / "run").read_text()
    in_turn = re.search(r"^versions=\((.*)\)$", script, re.MULTILINE)
    assert in_turn is not None
    default = re.search(r'^DEFAULT_VERSION = "(.*)"$', (REPOSITORY / "tools" / "vllm_env.py").read_text(), re.MULTILINE)
    assert default is not None
    assert json.loads(ROWS.read_text()).keys() == {*in_turn[1].split(), default[1]}


def test_settings_are_described() -> None:
    text = PAGE.read_text(encoding="utf-8")
    code = (REPOSITORY / "engine" / "src" / "vllm_monitor_engine" / "settings.py").read_text()
    names = set(re.findall(r"\bVLLMMON_[A-Z]+(?:_[A-Z]+)*\b", code))
    assert len(names) >= 7
    assert {name for name in names if f"| `{name}` |" not in text} == set()
