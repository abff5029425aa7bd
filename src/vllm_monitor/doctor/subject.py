"""What is examined: a machine, an environment and the command that will run there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_monitor.clock import Clock, SystemClock
from vllm_monitor.collectors.proc_files import ProcessTable
from vllm_monitor.collectors.server_command import DEFAULT_PORT
from vllm_monitor.doctor.gpu_reading import Gpus, read_gpus
from vllm_monitor.doctor.installation import Installation
from vllm_monitor.doctor.launch import Launch
from vllm_monitor.doctor.model_files import ModelFiles, find_model
from vllm_monitor.persistence.codecs.redaction import REDACTED, is_secret_name
from vllm_monitor.records import HappyPath

__all__ = ["Machine", "Secrets", "Subject"]

_LEAST_SECRET_LENGTH = 8
"""A key such as "vllm" or "EMPTY" is none, and hiding it would take ordinary words out of what is said."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the machine is looked at.

    Args:
        shm_dir: Where shared memory is mounted.
        proc_dir: Where the kernel tells of itself.
        cgroup_dir: Where control groups are mounted.
        processes: All processes now.
        gpus: All GPUs now.
        descriptor_limits: Soft and hard limit of open files; ``None`` reads those of this process.
        clock: Where time comes from.
    """

    shm_dir: Path = Path("/dev/shm")  # noqa: S108  # it is examined, not used
    proc_dir: Path = Path("/proc")
    cgroup_dir: Path = Path("/sys/fs/cgroup")
    processes: Callable[[], ProcessTable] = ProcessTable
    gpus: Callable[[], Gpus] = read_gpus
    descriptor_limits: tuple[int, int] | None = None
    clock: Clock = field(default_factory=SystemClock)


@dataclass(frozen=True, slots=True)
class Subject:
    """All that the checks look at.

    Args:
        launch: The command; ``None`` when only machine and environment are examined.
        environment: Variables of the server: those it inherits, and those in front of the command.
        installation: What is installed where it will run.
        port: TCP port that it will serve on.
        storage_dir: Folder of the monitor's store.
        happy_paths: Known-good executions that are stored; a text says why they could not be read.
        machine: Where to look.
    """

    launch: Launch | None
    environment: Mapping[str, str]
    installation: Installation
    port: int = DEFAULT_PORT
    storage_dir: Path | None = None
    happy_paths: Sequence[HappyPath] | str = ()
    machine: Machine = field(default_factory=Machine)

    @property
    def model_files(self) -> ModelFiles | None:
        """The files of the model on this machine; ``None`` when there are none, or no model is known."""
        launch = self.launch
        if launch is None or launch.model is None:
            return None
        return find_model(launch.model, self.environment, launch.text("download-dir"))

    def size(self, option: str) -> int:
        """How many ways something is split: an option that is a whole number from 1 up, and 1 without it."""
        number = self.launch.number(option) if self.launch is not None else None
        return int(number) if number is not None and number >= 1 else 1

    def is_set(self, variable: str) -> bool:
        """Whether a variable is a switch that is on."""
        return self.environment.get(variable, "").strip().lower() in {"1", "true", "yes", "on"}


class Secrets:
    """What must not be said: values of secret options and variables. A second wall: no check speaks of them.

    Args:
        subject: Where they are.
    """

    def __init__(self, subject: Subject) -> None:
        options: Mapping[str, Any] = {} if subject.launch is None else subject.launch.options
        found: set[str] = set()
        for name, value in (*options.items(), *subject.environment.items()):
            if is_secret_name(name):
                found.update(one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str))
        self._values = sorted((one for one in found if len(one) >= _LEAST_SECRET_LENGTH), key=len, reverse=True)

    def hide(self, value: Any) -> Any:
        """A copy of a text, or of lists and mappings of texts, without them."""
        if isinstance(value, str):
            for secret in self._values:
                value = value.replace(secret, REDACTED)
            return value
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(item) for item in value]
        return os.fspath(value) if isinstance(value, Path) else value
