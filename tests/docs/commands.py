"""The commands of the program, and the command lines of the documentation."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from tests.docs.pages import Block
from typer.main import get_command

from vllm_monitor.cli.app import app

ROOT: Any = get_command(app)
COMMANDS: dict[str, Any] = {}
for _name, _command in ROOT.commands.items():
    if hasattr(_command, "commands"):  # a group: its commands have headings of their own
        COMMANDS.update({f"{_name} {name}": command for name, command in _command.commands.items()})
    else:
        COMMANDS[_name] = _command


def option_names(command: Any) -> set[str]:
    """Every option of a command, as written."""
    names = {"--help", "-h"}
    for parameter in command.params:
        if parameter.param_type_name == "option":
            names.update(parameter.opts, parameter.secondary_opts)
    return names


def command_lines(block: Block) -> Iterator[list[str]]:
    """The words of each simple command of a block, without prompts, comments and what stands after ``>``."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&|;()<>"):
                if words:
                    yield words
                words = [] if set(word).isdisjoint("<>") else ["redirected-to"]
            else:
                words.append(word)
