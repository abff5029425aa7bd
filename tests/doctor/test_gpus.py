"""GPUs, and who holds them."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.doctor.subjects import CPU_BUILD, GIB, levels, make_subject, model_of, run_check, the_only

from vllm_monitor.doctor import Gpu, Gpus, Level, gpu_reading, read_gpus


def gpu(index: int, free_gib: int, **fields: Any) -> Gpu:
    return Gpu(index, f"GPU-{index}aa", "NVIDIA H100", 80 * GIB, free_gib * GIB, **fields)


def test_gpus_that_are_free_and_enough() -> None:
    gpus = Gpus((gpu(0, 79), gpu(1, 79)))
    assert levels(run_check("gpus", make_subject("vllm serve m -tp 2", gpus=gpus))) == [Level.OK]
    assert levels(run_check("gpus", make_subject(gpus=gpus))) == [Level.OK]
    assert run_check("gpus", make_subject(gpus=gpus, installation=CPU_BUILD)) == []


def test_more_parallel_than_there_are_gpus() -> None:
    gpus = Gpus((gpu(0, 79), gpu(1, 79)))
    found = run_check("gpus", make_subject("vllm serve m -tp 2 -pp 2", gpus=gpus))
    assert "wants 4 GPUs and 2 are visible" in the_only(found, Level.PROBLEM).message
    command = "CUDA_VISIBLE_DEVICES=GPU-1a vllm serve m -tp 2"
    assert "1 are visible" in the_only(run_check("gpus", make_subject(command, gpus=gpus)), Level.PROBLEM).message
    command = "CUDA_VISIBLE_DEVICES=9,0 vllm serve m"  # CUDA stops at the first that it does not know
    assert "0 are visible" in the_only(run_check("gpus", make_subject(command, gpus=gpus)), Level.PROBLEM).message
    command = "CUDA_VISIBLE_DEVICES=MIG-1 vllm serve m -tp 2"
    assert levels(run_check("gpus", make_subject(command, gpus=gpus))) == [Level.UNKNOWN]


def test_who_holds_a_full_gpu_is_told() -> None:
    gpus = Gpus((gpu(0, 79), gpu(1, 40, holders={os.getpid(): 39 * GIB})))
    found = the_only(run_check("gpus", make_subject("vllm serve m -tp 2", gpus=gpus)), Level.PROBLEM)
    assert "GPU 1 has 40 GiB of 80 GiB free" in found.message
    assert f"pid {os.getpid()}" in found.message
    assert levels(run_check("gpus", make_subject("vllm serve m", gpus=gpus))) == [Level.OK]
    command = "vllm serve m -tp 2 --gpu-memory-utilization 0.4"
    assert levels(run_check("gpus", make_subject(command, gpus=gpus))) == [Level.OK]


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    model, gpus = model_of(tmp_path / "model", 100), Gpus((gpu(0, 80), gpu(1, 80)))
    assert levels(run_check("gpus", make_subject(f"vllm serve {model}", gpus=gpus))) == [Level.PROBLEM]
    assert levels(run_check("gpus", make_subject(f"vllm serve {model} -tp 2", gpus=gpus))) == [Level.OK]


def test_gpus_that_cannot_be_read_are_unknown_for_a_command() -> None:
    assert levels(run_check("gpus", make_subject("vllm serve m"))) == [Level.UNKNOWN]
    assert levels(run_check("gpus", make_subject())) == [Level.NOTE]


class NVMLError(Exception):
    """As NVIDIA's library raises."""


def fake_nvml(**overrides: Any) -> Any:
    memory = SimpleNamespace(total=80 * GIB, free=30 * GIB)
    running = [SimpleNamespace(pid=7, usedGpuMemory=50 * GIB), SimpleNamespace(pid=8, usedGpuMemory=None)]
    functions = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": lambda handle: memory,
        "nvmlDeviceGetName": lambda handle: b"NVIDIA H100",
        "nvmlDeviceGetUUID": lambda handle: "GPU-1",
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: running,
    }
    return SimpleNamespace(NVMLError=NVMLError, **(functions | overrides))


def failing(*_: object) -> None:
    raise NVMLError("GPU is lost")


def test_gpus_are_read_with_their_holders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_reading, "_PIDS_OF_THE_HOST", Path("/proc/self/ns/pid").stat().st_ino)
    gpus = read_gpus(fake_nvml())
    assert gpus.devices == (Gpu(0, "GPU-1", "NVIDIA H100", 80 * GIB, 30 * GIB, {7: 50 * GIB, 8: None}),)
    assert (gpus.held_by(7), gpus.held_by(8), gpus.held_by(9)) == (50 * GIB, None, None)
    assert read_gpus(fake_nvml(nvmlDeviceGetComputeRunningProcesses=failing)).devices[0].holders == {}


def test_within_a_container_no_process_is_blamed(tmp_path: Path) -> None:
    for namespace in (tmp_path, tmp_path / "absent"):
        assert read_gpus(fake_nvml(), namespace).devices[0].holders == {}


@pytest.mark.parametrize("name", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetMemoryInfo"])
def test_gpus_that_fail_are_told(name: str) -> None:
    assert "GPU is lost" in read_gpus(fake_nvml(**{name: failing})).failure


def test_the_names_of_nvidia_s_library_exist() -> None:
    pynvml = pytest.importorskip("pynvml")
    assert [name for name in vars(fake_nvml()) if not hasattr(pynvml, name)] == []
