"""Whether host memory is enough for what is about to start, and whether the host is already swapping."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_monitor.doctor.findings import Finding, Level
from vllm_monitor.doctor.memory_limits import group_room, read_host_memory
from vllm_monitor.doctor.subject import Subject
from vllm_monitor.doctor.wording import size

__all__ = ["CPU_UTILISATION", "OWN_BYTES", "check_memory"]

OWN_BYTES = 2_500_000_000
"""What the processes of a server take without a model: 0.7 GB the API server, 1.1 GB a worker, the engine between them,
measured on the CPU build of vLLM 0.32."""
CPU_UTILISATION = 0.92
"""Share of the memory that the CPU build reserves when it is not told how much; it refuses to start below that."""
SWAP_FULL_RATIO = 0.5
_GIB = 1 << 30
_MOST_DIGITS = 9
_CHECK = "memory"


def check_memory(subject: Subject) -> Iterator[Finding]:
    """What is available on the host and in the control group, against what the server will need."""
    machine = subject.machine
    host = read_host_memory(machine.proc_dir)
    if host is None:
        yield Finding(_CHECK, Level.UNKNOWN, "the kernel does not tell how much memory there is")
        return
    group = group_room(machine.proc_dir, machine.cgroup_dir, host.total_bytes)
    is_tighter = group is not None and group.room_bytes < host.available_bytes
    room = group.room_bytes if group is not None and is_tighter else host.available_bytes
    where = "within the limit of the control group" if is_tighter else f"of {size(host.total_bytes)}"
    needs = dict(_needs(subject, host.total_bytes))
    need = sum(needs.values())
    data = {
        "available_bytes": host.available_bytes,
        "total_bytes": host.total_bytes,
        "group_limit_bytes": None if group is None else group.limit_bytes,
        "group_room_bytes": None if group is None else group.room_bytes,
        "needed_bytes": need,
    }
    parts = " + ".join(f"{size(number)} {name}" for name, number in needs.items())
    if need > room:
        advice = "End what holds memory (orphans above all), raise the limit, or take a smaller model or KV cache."
        message = f"{size(room)} are free {where}, and some {size(need)} are needed: {parts}"
        yield Finding(_CHECK, Level.PROBLEM, message, advice, data=data)
    else:
        yield Finding(_CHECK, Level.OK, f"{size(room)} free {where}, some {size(need)} needed ({parts})", data=data)
    swapped = host.swap_total_bytes - host.swap_free_bytes
    if host.swap_total_bytes and swapped > SWAP_FULL_RATIO * host.swap_total_bytes:
        message = f"{size(swapped)} of {size(host.swap_total_bytes)} swap are in use: this machine is short of memory"
        yield Finding(_CHECK, Level.WARNING, message, "Find out what holds it before you start a server.")


def _needs(subject: Subject, total_bytes: int) -> Iterator[tuple[str, int]]:
    """What the server takes of host memory. Weights for GPUs only pass through the page cache, which gives way."""
    yield "vLLM itself", OWN_BYTES
    launch = subject.launch
    if launch is None or not subject.installation.is_cpu_build:
        return
    space, explicit = subject.environment.get("VLLM_CPU_KVCACHE_SPACE", ""), launch.number("kv-cache-memory-bytes")
    is_told = space.isdecimal() and len(space) <= _MOST_DIGITS
    if is_told or explicit is not None:
        files = subject.model_files
        if files is not None:
            yield "weights", files.weights_bytes
        ranks = subject.size("tensor-parallel-size") * subject.size("pipeline-parallel-size")
        yield "KV cache", ranks * (int(space) * _GIB if is_told else int(explicit or 0))
    else:
        ratio = launch.number("gpu-memory-utilization")
        share = CPU_UTILISATION if ratio is None else ratio
        yield "that the CPU build reserves without VLLM_CPU_KVCACHE_SPACE", int(share * total_bytes)
