"""Whether there are enough GPUs with enough free memory, and who holds the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from vllm_monitor.doctor.findings import Finding, Level
from vllm_monitor.doctor.gpu_reading import Gpu
from vllm_monitor.doctor.ports import shown_command
from vllm_monitor.doctor.subject import Subject
from vllm_monitor.doctor.wording import size

__all__ = ["check_gpus"]

DEFAULT_UTILISATION = 0.92
"""What vLLM 0.32 takes without --gpu-memory-utilization; earlier ones take 0.9."""
_CHECK = "gpus"


def check_gpus(subject: Subject) -> Iterator[Finding]:
    """Number of GPUs against the parallelism; free memory against what vLLM asks for at its start."""
    if subject.installation.is_cpu_build:
        return
    gpus = subject.machine.gpus()
    if gpus.failure:
        level = Level.NOTE if subject.launch is None else Level.UNKNOWN
        yield Finding(_CHECK, level, gpus.failure, "Look with nvidia-smi, or install vllm-monitor[gpu].")
        return
    if "MIG" in subject.environment.get("CUDA_VISIBLE_DEVICES", ""):
        yield Finding(_CHECK, Level.UNKNOWN, "parts of a GPU (MIG) were not looked at", "Look with nvidia-smi.")
        return
    visible = gpus.visible(subject.environment)
    data = {"gpus": [asdict(one) for one in visible]}
    if subject.launch is None:
        free = ", ".join(f"{one.name}: {size(one.free_bytes)} of {size(one.total_bytes)} free" for one in visible)
        yield Finding(_CHECK, Level.OK, free or "no GPU is visible", data=data)
        return
    needed = subject.size("tensor-parallel-size") * subject.size("pipeline-parallel-size")
    if needed > len(visible):
        message = f"the command wants {needed} GPUs and {len(visible)} are visible"
        advice = "Lower --tensor-parallel-size, or look at CUDA_VISIBLE_DEVICES and at the driver (nvidia-smi)."
        yield Finding(_CHECK, Level.PROBLEM, message, advice, data=data)
        return
    findings = [finding for one in visible[:needed] for finding in _too_full(subject, one, needed)]
    total = ", ".join(f"{one.name} {size(one.free_bytes)} free" for one in visible[:needed])
    yield from findings or [Finding(_CHECK, Level.OK, total, data=data)]


def _too_full(subject: Subject, gpu: Gpu, parts: int) -> Iterator[Finding]:
    ratio = subject.launch.number("gpu-memory-utilization") if subject.launch is not None else None
    wanted = (DEFAULT_UTILISATION if ratio is None else ratio) * gpu.total_bytes
    files = subject.model_files
    weights = 0 if files is None else files.weights_bytes / parts
    held = ", ".join(
        f"{shown_command(pid)} {'' if number is None else size(number)}".rstrip() for pid, number in gpu.holders.items()
    )
    data = {"gpu": asdict(gpu), "wanted_bytes": int(wanted), "weights_bytes": int(weights)}
    if gpu.free_bytes < wanted:
        message = (
            f"GPU {gpu.index} has {size(gpu.free_bytes)} of {size(gpu.total_bytes)} free, vLLM wants {size(wanted)}: "
            f"it will not start. Held by: {held or 'processes that cannot be told from here'}"
        )
        advice = "End what holds it (orphans above all), or lower --gpu-memory-utilization."
        yield Finding(_CHECK, Level.PROBLEM, message, advice, data=data)
    elif weights > wanted:
        message = f"the weights are {size(weights)} for each GPU, and vLLM may take {size(wanted)} of GPU {gpu.index}"
        advice = "Split them over more GPUs (--tensor-parallel-size), or take a smaller or quantized model."
        yield Finding(_CHECK, Level.PROBLEM, message, advice, data=data)
