"""Host memory and descriptors."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.doctor.subjects import CPU_BUILD, GIB, levels, make_subject, model_of, run_check, the_only

from vllm_monitor.doctor import Level

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
