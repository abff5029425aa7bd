"""What is examined: a machine, an environment and the command that will run there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vllm_monitor.clock import Clock, SystemClock
from vllm_monitor.collectors.proc_files import ProcessTable
from vllm_monitor.collectors.server_command import DEFAULT_PORT
from vllm_monitor.doctor.gpu_reading import Gpus, read_gpus
from vllm_monitor.doctor.installation import Installation
from vllm_monitor.doctor.launch import Launch
from vllm_monitor.doctor.model_files import ModelFiles, find_model
from vllm_monitor.doctor.secrets import Secrets
from vllm_monitor.errors import StorageError
from vllm_monitor.records import HappyPath

__all__ = ["Machine", "Subject"]


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
        happy_paths: Known-good executions that are stored; an error says why they could not be read.
        machine: Where to look.
    """

    launch: Launch | None
    environment: Mapping[str, str]
    installation: Installation
    port: int = DEFAULT_PORT
    storage_dir: Path | None = None
    happy_paths: Sequence[HappyPath] | StorageError = ()
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

    @property
    def secrets(self) -> Secrets:
        """What hides the secrets of the command and its variables."""
        return Secrets({} if self.launch is None else self.launch.options, self.environment)
