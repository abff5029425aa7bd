"""Room on disk for the monitor's store, for what is recorded inside, and for a model that must be downloaded."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vllm_monitor.doctor.findings import Finding, Level
from vllm_monitor.doctor.model_files import cache_folder, is_path, is_there
from vllm_monitor.doctor.subject import Subject
from vllm_monitor.doctor.wording import size

__all__ = ["FEW_BYTES", "FULL_BYTES", "check_disk"]

FULL_BYTES = 100 << 20
FEW_BYTES = 1 << 30
"""The store of one server takes some 7 MB a day, what is recorded inside at most 64 MiB for each process."""
_CHECK = "disk"


def check_disk(subject: Subject) -> Iterator[Finding]:
    """Free space and free inodes of each folder that will be written to."""
    findings = [one for what, folder in _folders(subject) if (one := _room(what, folder)) is not None]
    yield from findings or [Finding(_CHECK, Level.OK, "enough room on every disk")]


def _folders(subject: Subject) -> Iterator[tuple[str, Path]]:
    if subject.storage_dir is not None:
        yield "the monitor's store", subject.storage_dir
    environment = subject.environment
    if subject.is_set("VLLMMON_ENABLED"):
        named = environment.get("VLLMMON_SPOOL_DIR")
        yield (
            "what is recorded inside",
            Path(named) if named else Path(environment.get("TMPDIR") or tempfile.gettempdir()),
        )
    launch = subject.launch
    if launch is not None and launch.model is not None and not is_path(launch.model) and subject.model_files is None:
        yield "the model's download", cache_folder(environment, launch.text("download-dir"))


def _room(what: str, folder: Path) -> Finding | None:
    existing = next((one for one in (folder, *folder.absolute().parents) if is_there(one)), Path("/"))
    try:
        room = os.statvfs(existing)
    except OSError as error:
        return Finding(_CHECK, Level.UNKNOWN, f"{existing} (for {what}) cannot be looked at: {error.strerror}")
    free = room.f_frsize * room.f_bavail
    data = {"folder": str(folder), "free_bytes": free, "free_inodes": room.f_favail}
    if not os.access(existing, os.W_OK):
        message = f"{folder} (for {what}) cannot be written by this user"
        return Finding(
            _CHECK, Level.WARNING, message, "Run as the user that will serve, or change its owner.", data=data
        )
    has_no_inode = room.f_files > 0 and room.f_favail == 0
    if free >= FEW_BYTES and not has_no_inode:
        return None
    level = Level.PROBLEM if free < FULL_BYTES or has_no_inode else Level.WARNING
    left = "no inode is free" if has_no_inode else f"{size(free)} are free"
    return Finding(_CHECK, level, f"{left} for {what} ({folder})", "Make room, or name another folder.", data=data)
