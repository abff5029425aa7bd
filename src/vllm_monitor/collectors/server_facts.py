"""What a local server was started with, and what it runs on: told once for each life of it.

Only variables that steer vLLM and the libraries below it are read, so that the rest of an environment, where most
secrets are, never gets anywhere; what is read is redacted when it is stored.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from vllm_monitor.collectors.proc_files import command_line
from vllm_monitor.collectors.server_command import server_arguments

__all__ = ["ServerFacts", "arguments_of", "read_server_facts"]

_STEERING = (
    "VLLM_", "CUDA_", "NVIDIA_", "NCCL_", "PYTORCH_", "TORCH", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "OMP_", "MKL_",
    "RAY_", "GLOO_", "HIP_", "ROCR_", "HSA_", "XLA_", "TPU_", "TRITON_", "FLASHINFER_", "UCX_", "NIXL_", "LMCACHE_",
)  # fmt: skip
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """Facts of one life of a server.

    Args:
        pid: Its process, as long as it lives.
        arguments: Options of its command line; a flag without a value is ``True``.
        environment: Variables that steer it.
        hardware_state: The host: CPUs, memory, kernel, machine.
    """

    pid: int
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    hardware_state: dict[str, Any] = field(default_factory=dict)


def read_server_facts(pid: int) -> ServerFacts:
    """The facts of a process, as far as we may read them."""
    return ServerFacts(
        pid,
        arguments_of(server_arguments(command_line(pid) or ()) or ()),
        _steering_variables(pid),
        {
            "cpus": os.cpu_count(),
            "cpus_allowed": _cpus_allowed(pid),
            "memory_total_bytes": psutil.virtual_memory().total,
            "machine": platform.machine(),
            "kernel": platform.release(),
        },
    )


def arguments_of(command: Sequence[str]) -> dict[str, Any]:
    """Options by name, without dashes; an option that comes several times has a list, a word by itself is ``model``.

    Args:
        command: What follows the name of the program.
    """
    found: dict[str, list[Any]] = {}
    name = ""
    for word in command:
        if word.startswith("--"):
            name, has_value, value = word[2:].partition("=")
            found.setdefault(name, []).append(value if has_value else True)
            name = "" if has_value else name
        elif name and found[name][-1] is True:
            found[name][-1] = word
        elif name:
            found[name].append(word)  # an option with several values
        else:
            found.setdefault("model", []).append(word)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def _steering_variables(pid: int) -> dict[str, str]:
    try:
        with Path(f"/proc/{pid}/environ").open("rb") as file:
            content = file.read(_MOST_BYTES)
    except OSError:
        return {}  # another user's process
    pairs = (entry.decode("utf-8", "replace").partition("=") for entry in content.split(b"\0"))
    return {name: value for name, _, value in pairs if name.startswith(_STEERING)}


def _cpus_allowed(pid: int) -> int | None:
    try:
        return len(os.sched_getaffinity(pid))
    except OSError:
        return None
