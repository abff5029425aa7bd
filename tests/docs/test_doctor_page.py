"""docs/doctor.md names every check, rule, level and threshold that there is."""

from __future__ import annotations

import json

from tests.cli.running import run
from tests.docs.pages import DOCS, code_spans, section, table_rows
from tests.docs.test_cli_page import assert_documented

from vllm_monitor.doctor import CHECKS, RULES, Level, descriptors, disk, installation, orphans, shared_memory, versions

PAGE = DOCS / "doctor.md"


def first_spans(heading: str) -> list[str]:
    return [code_spans(row[0])[0] for row in table_rows(section(PAGE, heading))[1:]]


def test_checks() -> None:
    assert first_spans("Checks") == list(CHECKS)


def test_rules_and_their_levels() -> None:
    rows = {code_spans(row[0])[0]: row[1] for row in table_rows(section(PAGE, "Flags"))[1:]}
    assert rows == {rule.name: rule.level.value for rule in RULES}
    assert list(rows) == [rule.name for rule in RULES]


def test_levels() -> None:
    spans = [span for row in table_rows(section(PAGE, "Before the start")) for span in code_spans(row[0])]

    assert spans[: len(Level)] == [one.value for one in reversed(Level)]


def test_thresholds() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for said in (
        f"less than {shared_memory.LEAST_BYTES >> 20} MiB free",
        f"less than {disk.FULL_BYTES >> 20} MiB",
        f"less than {disk.FEW_BYTES >> 30} GiB",
        f"cannot raise to {descriptors.WANTED}: below {descriptors.FEW}",
        f"vLLM before {versions.OLDEST_VLLM}",
        f"SIGKILL after {orphans.TERM_SECONDS:g} s",
        f"given up after {installation.LIMIT_SECONDS:g} s",
    ):
        assert said in text
    assert shared_memory.LEAST_AGE_SECONDS == 600.0
    assert "older than ten minutes" in text


def test_keys_of_the_json() -> None:
    document = json.loads(run("doctor", "--json", "--port", "70000", check=1).stdout)
    document["fixes"] = document["fixes"] or [dict.fromkeys(("check", "what", "done", "result"))]
    assert_documented(document, "JSON of doctor", below=frozenset({"data"}))
