"""Recognising vLLM's processes by their command lines and titles."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

__all__ = ["DEFAULT_PORT", "is_forwarder", "port_of_server_command", "role_of_title", "server_arguments"]

DEFAULT_PORT = 8000
_MOST_DIGITS = 9

_MODULES = {"vllm.entrypoints.openai.api_server", "vllm.entrypoints.api_server"}
_COMMAND_MODULES = {"vllm", "vllm.entrypoints.cli.main"}
_PYTHON = re.compile(r"(?:python|pypy)[0-9.]*\Z")
_OPTIONS_WITH_VALUE = {"-W", "-X", "--check-hash-based-pycs"}
# The prefix is VLLM unless the operator set another; the kernel cuts its own name after 15 characters.
_TITLES = (
    (re.compile(r"\S*::EngineCor"), "engine"),
    (re.compile(r"\S*::Worker"), "worker"),
    (re.compile(r"\S*::APIServe"), "api"),
)
# They listen in a server's stead; their memory and state say nothing about the server.
_FORWARDERS = {
    "docker-proxy",
    "envoy",
    "haproxy",
    "kubectl",
    "nginx",
    "rootlessport",
    "slirp4netns",
    "socat",
    "ssh",
    "sshd",
    "traefik",
}


def port_of_server_command(arguments: Sequence[str]) -> int | None:
    """The port that a command line will serve on, or ``None`` when it starts no server.

    Only the server itself counts, not a shell or a ``timeout`` that mentions it.
    """
    command = server_arguments(arguments)
    if command is None:
        return None
    port = DEFAULT_PORT
    for index, argument in enumerate(command):
        text = ""
        if argument == "--port" and index + 1 < len(command):
            text = command[index + 1]
        elif argument.startswith("--port="):
            text = argument[len("--port=") :]
        if text.isdecimal():
            port = int(text[:_MOST_DIGITS])  # a longer one is no port either way
    return port


def role_of_title(arguments: Sequence[str], kernel_name: str) -> str | None:
    """The role that a process's title tells, or ``None`` when it has none of ours (yet).

    Args:
        arguments: Its command line, which vLLM overwrites with the title; empty for a zombie.
        kernel_name: Its name as the kernel keeps it.
    """
    title = arguments[0] if arguments else kernel_name
    for pattern, role in _TITLES:
        if pattern.match(title):
            return role
    if any("multiprocessing.resource_tracker" in argument for argument in arguments):
        return "resource_tracker"
    return None


def name_for_other(arguments: Sequence[str], kernel_name: str) -> str:
    """What to call a process that has no role: its title where it has one, or its kernel name."""
    title = arguments[0] if arguments else ""
    return title if "::" in title else kernel_name or "?"


def is_forwarder(kernel_name: str) -> bool:
    """Whether a listening process only passes connections on, to a server that we cannot see."""
    return kernel_name in _FORWARDERS


def server_arguments(arguments: Sequence[str]) -> Sequence[str] | None:
    """What follows the server's name on a command line, or ``None`` when it starts no server."""
    if not arguments:
        return None
    script, rest = arguments[0], arguments[1:]
    if _PYTHON.match(os.path.basename(script)):  # noqa: PTH119  # a command line is text, not a path of ours
        module, script, rest = _python_program(rest)
        if module:
            if script in _MODULES:
                return rest
            return rest[1:] if script in _COMMAND_MODULES and rest[:1] == ("serve",) else None
    name = os.path.basename(script)  # noqa: PTH119  # likewise
    if name == "api_server.py":
        return rest
    if name == "vllm" and rest[:1] == ("serve",):
        return rest[1:]
    return rest[1:] if name == "vllm-monitor" and rest[:1] == ("simulate",) else None


def _python_program(arguments: Sequence[str]) -> tuple[bool, str, Sequence[str]]:
    """Whether it is a module, what the interpreter runs, and the arguments of that."""
    index = 0
    while index < len(arguments):
        argument = arguments[index]
        if argument == "-m" and index + 1 < len(arguments):
            return True, arguments[index + 1], arguments[index + 2 :]
        if argument == "-c" or not argument.startswith("-"):
            break
        index += 2 if argument in _OPTIONS_WITH_VALUE else 1
    script = arguments[index] if index < len(arguments) and arguments[index] != "-c" else ""
    return False, script, arguments[index + 1 :]
