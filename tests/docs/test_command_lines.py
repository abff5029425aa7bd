"""What the documentation tells people to type is understood by the program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.docs.commands import COMMANDS, ROOT, command_lines, option_names
from tests.docs.pages import PAGES, README, REPOSITORY, Block, blocks, blocks_of_all, code_spans, prose

SHELL_BLOCKS = blocks_of_all("sh", "console")
# Options of other programs that the pages speak of.
FOREIGN_OPTIONS = {
    "--api-server-count",  # vLLM
    "--data-parallel-size",  # vLLM
    "--disable-log-stats",  # vLLM
    "--enable-server-load-tracking",  # vLLM
    "--gpu-memory-utilization",  # vLLM
    "--middleware",  # vLLM
    "--max-num-seqs",  # vLLM
    "--pid",  # py-spy
    "--root-path",  # vLLM
    "--strict",  # mypy
}


def parse(words: list[str]) -> None:
    """Parse the arguments of one ``vllm-monitor`` command line as the program would, without running it."""
    arguments = list(words)
    while arguments and arguments[0] in option_names(ROOT):
        arguments.pop(0)
    if arguments:
        name, *rest = arguments
        if rest and f"{name} {rest[0]}" in COMMANDS:  # of a group
            name = f"{name} {rest.pop(0)}"
        assert name in COMMANDS, f"there is no command {name}"
        if not {"--help", "-h"} & set(rest):
            COMMANDS[name].make_context(name, rest)


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=str)
def test_commands_are_understood(block: Block) -> None:
    for words in command_lines(block):
        if words[0] == "vllm-monitor":
            parse(words[1:])


def test_the_check_can_fail() -> None:
    for words in (["wach"], ["watch", "--intervall", "2"], ["record", "http://host"], ["demo", "--duration", "long"]):
        with pytest.raises(BaseException, match=r"."):
            parse(words)


def test_many_commands_are_checked() -> None:
    lines = [words for block in SHELL_BLOCKS for words in command_lines(block) if words[0] == "vllm-monitor"]
    assert {words[1] for words in lines} | {" ".join(words[1:3]) for words in lines} >= set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_in_the_text_exist(page: Path) -> None:
    known = set().union(FOREIGN_OPTIONS, option_names(ROOT), *map(option_names, COMMANDS.values()))
    for span in code_spans("\n".join(prose(page))):
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", span):
            assert option in known, f"{page.name} speaks of {option}"
        words = span.split()
        if words[:1] == ["vllm-monitor"] and len(words) > 1 and words[1].islower() and words[1].isalpha():
            groups = {name.split()[0] for name in COMMANDS}
            assert words[1] in groups, f"{page.name} speaks of `{span}`"


def test_the_first_two_commands_of_the_readme_are_what_ci_runs() -> None:
    shell = [block for block in blocks(README) if block.language == "sh"]
    first = shell[0].text.splitlines()[0]
    assert first == "pip install . && vllm-monitor demo --duration 45"
    assert [block.text for block in shell].count("pip install '.[test]' && pytest\n") == 1
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    for command in ("vllm-monitor demo --duration 45", "'.[test]'", "pytest"):
        assert command in script
