"""The command that is about to be run, taken apart: interpreter, variables, options, address."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_monitor.collectors.server_command import DEFAULT_PORT, port_of_server_command, server_arguments
from vllm_monitor.collectors.server_facts import arguments_of
from vllm_monitor.doctor.secrets import without_secrets
from vllm_monitor.doctor.wording import shortened
from vllm_monitor.errors import ConfigurationError
from vllm_monitor.persistence.plain_file import open_plain

__all__ = ["Launch", "interpreter_of_script", "parse_launch"]

_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_OPTION = re.compile(r"--?[A-Za-z][A-Za-z_.-]*")
_PYTHON = re.compile(r"(?:python|pypy)[0-9.]*\Z")
_WRAPPERS = frozenset({"chrt", "env", "exec", "ionice", "nice", "nohup", "numactl", "setsid", "taskset", "timeout"})
"""Programs that become, or start on this machine, what follows them; a container or another host is another matter."""
_SHORT_NAMES = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-asc": "--api-server-count",
}
_SUFFIXES = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_MOST_SHEBANG_BYTES = 512


@dataclass(frozen=True, slots=True)
class Launch:
    """How a server will be started.

    Args:
        arguments: The command line without variables and wrappers in front, as given. It may hold secrets.
        options: Options by name, without dashes; a flag without a value is ``True``. They may hold secrets.
        variables: What stands before the command: ``NAME=VALUE``.
        interpreter: The Python that will run it, when that can be told.
        is_module: Whether it is started as a module, and not by the ``vllm`` command.
        port: TCP port on which it will serve.
    """

    arguments: tuple[str, ...]
    options: Mapping[str, Any]
    variables: Mapping[str, str] = field(default_factory=dict)
    interpreter: Path | None = None
    is_module: bool = False
    port: int = DEFAULT_PORT

    def has(self, name: str) -> bool:
        """Whether an option was given."""
        return name in self.options

    def text(self, name: str) -> str | None:
        """The value of an option; the last when it was given several times; ``None`` when it has none."""
        value = self.options.get(name)
        value = value[-1] if isinstance(value, list) else value
        return value if isinstance(value, str) else None

    def number(self, name: str) -> float | None:
        """The value of an option as vLLM reads it, ``32k`` being 32000 and ``32K`` 32768; ``None`` for no number."""
        text = self.text(name) or ""
        try:
            number = float(text[:-1]) * _SUFFIXES[text[-1]] if text[-1:] in _SUFFIXES else float(text)
        except ValueError:
            return None
        return number if math.isfinite(number) else None

    @property
    def model(self) -> str | None:
        """The model: a folder or a name."""
        return self.text("model")

    @property
    def host(self) -> str:
        """The address on which it will listen; empty for all of them, as vLLM does by default."""
        return self.text("host") or ""

    @property
    def is_open_to_others(self) -> bool:
        """Whether other machines can connect."""
        return not self.has("uds") and self.host not in {"localhost", "::1"} and not self.host.startswith("127.")


def parse_launch(words: Sequence[str], environment: Mapping[str, str]) -> Launch:
    """Take a command apart as an operator types it, with or without ``NAME=VALUE`` in front.

    Args:
        words: The words of the command.
        environment: The variables that it will inherit; its ``PATH`` tells which program a name means.

    Raises:
        ConfigurationError: When it starts no vLLM server.
    """
    rest, variables, is_wrapped = tuple(words), dict[str, str](), False
    while rest and server_arguments(rest) is None:
        is_assignment = _ASSIGNMENT.match(rest[0]) is not None
        is_wrapped = is_wrapped or Path(rest[0]).name in _WRAPPERS
        if not is_assignment and not is_wrapped:
            break
        if is_assignment:
            name, _, value = rest[0].partition("=")
            variables[name] = value
        rest = rest[1:]
    arguments, port = server_arguments(rest), port_of_server_command(rest)
    if arguments is None or port is None:
        raise ConfigurationError(
            f"{_program(words)} starts no vLLM server",
            hint="write after -- what you will run, for example: vllm-monitor doctor -- vllm serve MODEL --port 8000",
        )
    found = shutil.which(rest[0], path=variables.get("PATH", environment.get("PATH")))
    interpreter = None
    if found is not None:
        is_python = _PYTHON.match(Path(found).name) is not None
        interpreter = Path(found) if is_python else interpreter_of_script(Path(found))
    return Launch(
        arguments=rest,
        options=_normalised(arguments_of([_SHORT_NAMES.get(word, word) for word in arguments])),
        variables=variables,
        interpreter=interpreter,
        is_module="-m" in rest[: len(rest) - len(arguments)],
        port=port,
    )


def _program(words: Sequence[str]) -> str:
    """What a command begins with, as it may be said: of an option only its name."""
    first = next((word for word in words if not _ASSIGNMENT.match(word)), "an empty command")
    option = _OPTION.match(first)
    return option.group() if option is not None else shortened(without_secrets(first))


def interpreter_of_script(script: Path) -> Path | None:
    """The interpreter that a console script names in its first line; ``None`` when it names none."""
    try:
        with os.fdopen(open_plain(script), "rb") as file:
            first = file.readline(_MOST_SHEBANG_BYTES)
    except OSError:
        return None
    words = first.decode("utf-8", "replace")[2:].split() if first.startswith(b"#!") else []
    if words and Path(words[0]).name == "env":
        found = shutil.which(words[-1])
        return None if found is None else Path(found)
    return Path(words[0]) if words and "python" in Path(words[0]).name else None


def _normalised(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as vLLM takes them: ``--max_model_len`` is ``--max-model-len``."""
    return {name.replace("_", "-"): value for name, value in options.items()}
