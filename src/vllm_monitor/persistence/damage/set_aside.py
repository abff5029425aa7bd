"""What was damaged and set aside: which databases there are, which wait for salvage, and how a person is told."""

from __future__ import annotations

import re
from pathlib import Path

from vllm_monitor.persistence.config import PersistenceConfig, StorageBackend

__all__ = ["files_set_aside", "report_path", "waiting_files", "what_happened"]

_REPORT_SUFFIX = ".salvaged.json"


def files_set_aside(config: PersistenceConfig) -> list[Path]:
    """Every damaged database that was set aside, oldest first; of some only the log may be left."""
    pattern = re.compile(rf"({re.escape(config.db_file)}\.damaged-\d{{8}}T\d{{6}}(-\d+)?)(-wal)?")
    try:
        names = [path.name for path in config.storage_dir.iterdir()]
    except OSError:
        return []
    found = {match[1] for match in map(pattern.fullmatch, names) if match}
    return [config.storage_dir / name for name in sorted(found)]


def report_path(damaged: Path) -> Path:
    """The file that says that a damaged store was salvaged, and what came out."""
    return damaged.with_name(f"{damaged.name}{_REPORT_SUFFIX}")


def waiting_files(config: PersistenceConfig) -> list[Path]:
    """Those that were not salvaged yet, oldest first."""
    return [path for path in files_set_aside(config) if not report_path(path).exists()]


def what_happened(config: PersistenceConfig, name: str) -> str:
    """That something was set aside as a file, for a person."""
    if config.backend is StorageBackend.JSON:
        return f"What could not be read was set aside in {name}; all other lines are kept and in use."
    return f"The store was damaged; it was kept as {name} and a new one was started."
