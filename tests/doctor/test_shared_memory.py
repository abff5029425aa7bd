"""Shared memory, disks, and what the dead leave behind."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from tests.doctor.subjects import levels, make_subject, room, run_check, the_only

from vllm_monitor.clock import ManualClock, SystemClock
from vllm_monitor.doctor import Level, apply_fixes

RING_BYTES = 10 * ((24 << 20) + 2)
"""Of the buffer that a worker of vLLM answers through."""


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


def segment(folder: Path, name: str = "psm_0a1b2c3d", size_bytes: int | None = None) -> Path:
    path = folder / name
    path.write_bytes(b"x" * 8192)
    os.truncate(path, RING_BYTES if size_bytes is None else size_bytes)
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


@pytest.mark.parametrize("size_bytes", [8192, 10 << 20, 240 << 20, RING_BYTES + 1, 10 * ((24 << 20) + 1)])
def test_a_segment_that_may_be_of_any_program_is_listed_and_left(tmp_path: Path, size_bytes: int) -> None:
    path = segment(tmp_path, size_bytes=size_bytes)
    found = run_check("shared memory", make_subject(machine={"shm_dir": tmp_path}, clock=later()))
    assert the_only(found, Level.NOTE).data["segments"] == [path.name]
    assert not apply_fixes(found)
    assert path.exists()


@pytest.mark.parametrize(("chunk_mib", "readers"), [(24, 1), (16, 1), (16, 8), (1, 64)])
def test_every_buffer_of_vllm_is_told_by_its_size(tmp_path: Path, chunk_mib: int, readers: int) -> None:
    path = segment(tmp_path, size_bytes=10 * ((chunk_mib << 20) + 1 + readers))
    found = run_check("shared memory", make_subject(machine={"shm_dir": tmp_path}, clock=later()))
    assert apply_fixes(found)[0][1].done
    assert not path.exists()


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
