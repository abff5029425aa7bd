"""GPUs and the processes that hold their memory, through NVIDIA's management library (extra ``gpu``)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Gpu", "Gpus", "read_gpus"]

_PIDS_OF_THE_HOST = 0xEFFFFFFC
"""The kernel's number of the first namespace of process numbers."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Args:
        index: As the driver counts.
        uuid: As the driver names it.
        name: Its model.
        total_bytes: Memory.
        free_bytes: Memory that nobody holds.
        holders: Bytes by pid, of those processes that the driver tells of; ``None`` where it does not say how many.
            Empty within a container, where its numbers mean other processes.
    """

    index: int
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    holders: Mapping[int, int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Gpus:
    """All GPUs.

    Args:
        devices: Those that there are.
        failure: Why they could not be looked at; empty when they were.
    """

    devices: tuple[Gpu, ...] = ()
    failure: str = ""

    def held_by(self, pid: int) -> int | None:
        """GPU memory of a process in bytes; ``None`` when it is not known to hold any."""
        held = [one.holders[pid] for one in self.devices if pid in one.holders]
        known = [number for number in held if number is not None]
        return sum(known) if known else None

    def visible(self, environment: Mapping[str, str]) -> tuple[Gpu, ...]:
        """Those that a program with this environment sees (``CUDA_VISIBLE_DEVICES``)."""
        chosen = environment.get("CUDA_VISIBLE_DEVICES")
        if chosen is None:
            return self.devices
        found: list[Gpu] = []
        for name in (part.strip() for part in chosen.split(",")):
            one = next(
                (gpu for gpu in self.devices if name == str(gpu.index) or (name and gpu.uuid.startswith(name))), None
            )
            if one is None:
                break  # CUDA stops at the first that it does not know
            found.append(one)
        return tuple(found)


def read_gpus(nvml: Any | None = None, namespace: Path = Path("/proc/self/ns/pid")) -> Gpus:
    """Look at all GPUs; never raises.

    Args:
        nvml: A module that speaks the API of ``pynvml``; the installed one when left out.
        namespace: Tells whether we number processes as the driver does: it does as the host, and not as a container.
    """
    has_its_pids = _inode(namespace) == _PIDS_OF_THE_HOST
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return Gpus(failure="GPUs were not looked at: vllm-monitor[gpu] is not installed")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Gpus(failure=f"no GPU readings: {error}")
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return Gpus(tuple(_read(nvml, index, one, has_its_pids=has_its_pids) for index, one in enumerate(handles)))
    except nvml.NVMLError as error:
        return Gpus(failure=f"no GPU readings: {error}")
    finally:
        nvml.nvmlShutdown()


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _read(nvml: Any, index: int, handle: Any, *, has_its_pids: bool) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    try:
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle) if has_its_pids else []
    except nvml.NVMLError:  # not told to everybody
        running = []
    return Gpu(
        index=index,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
        holders={int(one.pid): None if one.usedGpuMemory is None else int(one.usedGpuMemory) for one in running},
    )


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
