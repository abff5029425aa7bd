"""Memory, shared memory, descriptors, disks and GPUs."""

from __future__ import annotations

import mmap
import os
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from tests.doctor.subjects import CPU_BUILD, levels, make_subject, run_check, the_only

from vllm_monitor.clock import ManualClock, SystemClock
from vllm_monitor.doctor import Gpu, Gpus, Level, apply_fixes, read_gpus

GIB = 1 << 30
COMMAND = "VLLM_CPU_KVCACHE_SPACE={space} python -m vllm.entrypoints.openai.api_server --model {model}"


def kernel(
    folder: Path, *, available_gib: float = 20, swap_free_gib: float = 4, cgroup: str = "0::/"
) -> dict[str, Path]:
    """What the kernel would tell of a host with 24 GiB."""
    (folder / "proc" / "self").mkdir(parents=True)
    figures = {"MemTotal": 24.0, "MemAvailable": available_gib, "SwapTotal": 4.0, "SwapFree": swap_free_gib}
    text = "".join(f"{name}: {int(gib * GIB / 1024)} kB\n" for name, gib in figures.items())
    (folder / "proc" / "meminfo").write_text(text, encoding="utf-8")
    (folder / "proc" / "self" / "cgroup").write_text(cgroup + "\n", encoding="utf-8")
    return {"proc_dir": folder / "proc", "cgroup_dir": folder / "cgroup"}


def limit(folder: Path, values: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name).write_text(value + "\n", encoding="utf-8")


def model_of(folder: Path, gib: int) -> Path:
    """A model whose weights take no room on disk."""
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(gib * GIB)
    return folder


@pytest.mark.parametrize(("space", "level"), [(2, Level.OK), (30, Level.PROBLEM)])
def test_the_cpu_build_needs_weights_and_cache(tmp_path: Path, space: int, level: Level) -> None:
    command = COMMAND.format(space=space, model=model_of(tmp_path / "model", 3))
    subject = make_subject(command, installation=CPU_BUILD, machine=kernel(tmp_path))
    found = the_only(run_check("memory", subject), level)
    assert found.data["needed_bytes"] == 2_500_000_000 + (3 + space) * GIB
    assert f"3.0 GiB weights + {'2.0' if space == 2 else space} GiB KV cache" in found.message


def test_the_cpu_build_without_its_variable_takes_nearly_all(tmp_path: Path) -> None:
    command = "python -m vllm.entrypoints.openai.api_server --model m"
    subject = make_subject(command, installation=CPU_BUILD, machine=kernel(tmp_path))
    assert "VLLM_CPU_KVCACHE_SPACE" in the_only(run_check("memory", subject), Level.PROBLEM).message
    subject = make_subject(
        f"{command} --gpu-memory-utilization 0.5", installation=CPU_BUILD, machine=subject_dirs(tmp_path)
    )
    assert levels(run_check("memory", subject)) == [Level.OK]


def subject_dirs(folder: Path) -> dict[str, Path]:
    return {"proc_dir": folder / "proc", "cgroup_dir": folder / "cgroup"}


@pytest.mark.parametrize("version", [1, 2])
def test_the_control_group_may_leave_less_than_the_host(tmp_path: Path, version: int) -> None:
    dirs = kernel(tmp_path, cgroup="0::/a/b" if version == 2 else "4:memory:/a/b")
    root = tmp_path / "cgroup" / ("" if version == 2 else "memory")
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    stat = "inactive_file" if version == 2 else "total_inactive_file"
    # The limit stands at the parent; of what is used half is cache that gives way.
    limit(root / "a", dict(zip(names, map(str, (4 * GIB, 3 * GIB)), strict=True)) | {"memory.stat": f"{stat} {GIB}"})
    limit(root / "a" / "b", {names[0]: "max" if version == 2 else str(2**63 - 4096), names[1]: str(GIB)})
    found = the_only(run_check("memory", make_subject(machine=dirs)), Level.PROBLEM)
    assert found.data["group_room_bytes"] == 2 * GIB
    assert "limit of the control group" in found.message
    limit(root / "a", {names[1]: str(GIB)})
    assert levels(run_check("memory", make_subject(machine=dirs))) == [Level.OK]


def test_within_a_container_the_mounted_root_is_the_group(tmp_path: Path) -> None:
    dirs = kernel(tmp_path, cgroup="0::/system.slice/docker-1.scope")
    limit(tmp_path / "cgroup", {"memory.max": str(GIB), "memory.current": "0"})
    assert the_only(run_check("memory", make_subject(machine=dirs)), Level.PROBLEM).data["group_limit_bytes"] == GIB


def test_swap_in_use_and_a_kernel_that_does_not_tell(tmp_path: Path) -> None:
    found = run_check("memory", make_subject(machine=kernel(tmp_path, swap_free_gib=1)))
    assert "swap" in the_only(found, Level.WARNING).message
    nothing = {"proc_dir": tmp_path / "absent", "cgroup_dir": tmp_path}
    assert levels(run_check("memory", make_subject(machine=nothing))) == [Level.UNKNOWN]


@pytest.mark.parametrize(
    ("soft", "hard", "level"),
    [
        (1024, 4096, Level.WARNING),
        (20_000, 20_000, Level.NOTE),
        (1024, 1_048_576, Level.OK),  # vLLM raises it by itself
        (1024, -1, Level.OK),
        (65_535, 65_535, Level.OK),
    ],
)
def test_descriptors(soft: int, hard: int, level: Level) -> None:
    (found,) = run_check("descriptors", make_subject(machine={"descriptor_limits": (soft, hard)}))
    assert found.level is level
    assert (f"ulimit -n {hard}" in found.advice) is (level is Level.WARNING)


def room(free_bytes: int, total_bytes: int = 64 << 20, free_inodes: int = 9) -> Any:
    fields = {"f_frsize": 1, "f_blocks": total_bytes, "f_bavail": free_bytes, "f_files": 10, "f_favail": free_inodes}
    return namedtuple("Room", list(fields))(**fields)  # noqa: PYI024  # as os.statvfs gives it


def test_docker_s_64_mib_are_a_problem_for_workers(tmp_path: Path) -> None:
    dirs = {"shm_dir": tmp_path}
    with mock.patch("os.statvfs", return_value=room(64 << 20)):
        assert levels(run_check("shared memory", make_subject(machine=dirs))) == [Level.WARNING]
        subject = make_subject("vllm serve m -tp 2", machine=dirs)
        assert "--shm-size" in the_only(run_check("shared memory", subject), Level.PROBLEM).advice
        assert levels(run_check("shared memory", make_subject("vllm serve m", machine=dirs))) == [Level.WARNING]
    assert levels(run_check("shared memory", make_subject(machine=dirs))) == [Level.OK]
    assert levels(run_check("shared memory", make_subject(machine={"shm_dir": tmp_path / "no"}))) == [Level.UNKNOWN]


def later() -> ManualClock:
    """A clock for which everything that is made now is old."""
    return ManualClock(SystemClock().now() + 3600.0)


def segment(folder: Path, name: str = "psm_0a1b2c3d") -> Path:
    path = folder / name
    path.write_bytes(b"x" * 8192)
    return path


def test_segments_of_the_dead_are_found_and_removed(tmp_path: Path) -> None:
    gone, other = segment(tmp_path), segment(tmp_path, "psm_of_somebody")
    offload = segment(tmp_path, "vllm_offload_abc-1.mmap")
    subject = make_subject(machine={"shm_dir": tmp_path}, clock=later())
    found = run_check("shared memory", subject)
    assert the_only(found, Level.NOTE).data["segments"] == [gone.name, offload.name]
    assert gone.exists()
    ((_, result),) = apply_fixes(found)
    assert result.done
    assert (gone.exists(), offload.exists(), other.exists()) == (False, False, True)
    assert levels(run_check("shared memory", subject)) == [Level.OK]


def hold_open(path: Path) -> Callable[[], object]:
    descriptor = os.open(path, os.O_RDONLY)
    return lambda: os.close(descriptor)


def hold_mapped(path: Path) -> Callable[[], object]:
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0).close


@pytest.mark.parametrize("hold", [hold_open, hold_mapped])
def test_a_segment_in_use_is_left_alone(tmp_path: Path, hold: Callable[[Path], Callable[[], object]]) -> None:
    path = segment(tmp_path)
    subject = make_subject(machine={"shm_dir": tmp_path}, clock=later())
    release = hold(path)
    assert levels(run_check("shared memory", subject)) == [Level.OK]
    release()
    found = run_check("shared memory", subject)
    release = hold(path)  # somebody takes it between the look and the deed
    ((_, result),) = apply_fixes(found)
    assert not result.done
    assert path.name in result.text
    assert path.exists()
    release()


def test_a_young_segment_a_link_and_another_in_its_place_are_left_alone(tmp_path: Path) -> None:
    path = segment(tmp_path)
    assert levels(run_check("shared memory", make_subject(machine={"shm_dir": tmp_path}))) == [Level.OK]
    (tmp_path / "target").write_bytes(b"x")
    (tmp_path / "psm_00000000").symlink_to(tmp_path / "target")
    found = run_check("shared memory", make_subject(machine={"shm_dir": tmp_path}, clock=later()))
    assert the_only(found, Level.NOTE).data["segments"] == [path.name]
    new = segment(tmp_path, "new")
    new.rename(path)
    ((_, result),) = apply_fixes(found)
    assert not result.done
    assert path.exists()


def test_where_leases_are_unknown_nothing_is_claimed(tmp_path: Path) -> None:
    path = segment(tmp_path)
    with mock.patch("fcntl.fcntl", side_effect=OSError(22, "Invalid argument")):
        found = run_check("shared memory", make_subject(machine={"shm_dir": tmp_path}, clock=later()))
    assert path.name in the_only(found, Level.UNKNOWN).message
    assert not apply_fixes(found)


@pytest.mark.parametrize(
    ("free_bytes", "free_inodes", "level"),
    [(50 << 20, 9, Level.PROBLEM), (500 << 20, 9, Level.WARNING), (5 << 30, 9, Level.OK), (5 << 30, 0, Level.PROBLEM)],
)
def test_disk(tmp_path: Path, free_bytes: int, free_inodes: int, level: Level) -> None:
    with mock.patch("os.statvfs", return_value=room(free_bytes, free_inodes=free_inodes)):
        (found,) = run_check("disk", make_subject(storage_dir=tmp_path / "not" / "there"))
    assert found.level is level
    assert not (tmp_path / "not").exists()


def test_disk_looks_at_spool_and_download_too(tmp_path: Path) -> None:
    command = f"VLLMMON_ENABLED=1 VLLMMON_SPOOL_DIR={tmp_path}/spool HF_HOME={tmp_path}/hf vllm serve org/model"
    with mock.patch("os.statvfs", return_value=room(1)):
        found = run_check("disk", make_subject(command, storage_dir=tmp_path))
    assert [Path(one.data["folder"]) for one in found] == [tmp_path, tmp_path / "spool", tmp_path / "hf" / "hub"]


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


def test_gpus_are_read_with_their_holders() -> None:
    gpus = read_gpus(fake_nvml())
    assert gpus.devices == (Gpu(0, "GPU-1", "NVIDIA H100", 80 * GIB, 30 * GIB, {7: 50 * GIB, 8: None}),)
    assert (gpus.held_by(7), gpus.held_by(8), gpus.held_by(9)) == (50 * GIB, None, None)
    assert read_gpus(fake_nvml(nvmlDeviceGetComputeRunningProcesses=failing)).devices[0].holders == {}


@pytest.mark.parametrize("name", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetMemoryInfo"])
def test_gpus_that_fail_are_told(name: str) -> None:
    assert "GPU is lost" in read_gpus(fake_nvml(**{name: failing})).failure


def test_the_names_of_nvidia_s_library_exist() -> None:
    pynvml = pytest.importorskip("pynvml")
    assert [name for name in vars(fake_nvml()) if not hasattr(pynvml, name)] == []
