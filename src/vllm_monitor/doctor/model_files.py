"""The files of a model on this machine: given as a folder, or downloaded before from a hub."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_monitor.persistence.plain_file import open_plain

__all__ = ["ModelFiles", "cache_folder", "find_model", "is_path", "is_there", "why_absent"]

_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")  # the first kind that is there is what is loaded
_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "consolidated")
_MOST_CONFIG_BYTES = 16 << 20
_MOST_REVISION_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model that is here.

    Args:
        folder: Where.
        weights_bytes: Size of its weights; 0 when there are none.
        config: Its ``config.json``; ``None`` when there is none that can be read.
    """

    folder: Path
    weights_bytes: int
    config: Mapping[str, Any] | None = field(default=None)


def is_path(model: str) -> bool:
    """Whether a model is named by its folder, and not by its name on a hub."""
    return model.startswith(("/", "./", "../", "~")) or model.count("/") > 1 or is_there(model)


def is_there(path: str | Path) -> bool:
    """Whether something is there; also of what is no path or may not be looked at, where ``Path.exists`` raises."""
    return os.path.exists(path)  # noqa: PTH110  # see above


def find_model(model: str, environment: Mapping[str, str], download_dir: str | None = None) -> ModelFiles | None:
    """The files of a model; ``None`` when there is no such folder, or it was not downloaded yet."""
    folder = _expanded(model) if is_path(model) else _snapshot(model, environment, download_dir)
    if folder is None or not is_there(folder):
        return None
    if folder.is_file():  # a single GGUF file
        return ModelFiles(folder, folder.stat().st_size)
    return ModelFiles(folder, _weights_bytes(folder), _config(folder))


def why_absent(model: str) -> OSError | None:
    """What the system says when the folder of a model is looked for; ``None`` when it is there."""
    try:
        _expanded(model).stat()
    except OSError as error:
        return error
    except ValueError:  # a zero byte
        return OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return None


def cache_folder(environment: Mapping[str, str], download_dir: str | None = None) -> Path:
    """Where models of the Hugging Face hub are downloaded to."""
    if download_dir:
        return _expanded(download_dir)
    named = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE")
    if named:
        return _expanded(named)
    home = environment.get("HF_HOME")
    if not home:
        cache = environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME") or _expanded("~")) / ".cache"
        home = os.fspath(Path(cache) / "huggingface")
    return _expanded(home) / "hub"


def _snapshot(model: str, environment: Mapping[str, str], download_dir: str | None) -> Path | None:
    folder = cache_folder(environment, download_dir) / f"models--{model.replace('/', '--')}"
    try:
        revision = _content(folder / "refs" / "main", _MOST_REVISION_BYTES).decode("utf-8").strip()
    except (OSError, ValueError):
        return None
    return folder / "snapshots" / revision if revision and "/" not in revision else None


def _weights_bytes(folder: Path) -> int:
    try:
        files = [(path.name, path.stat().st_size) for path in folder.iterdir() if path.suffix in _WEIGHTS]
    except OSError:
        return 0
    wanted = [(name, size) for name, size in files if not name.startswith(_NO_WEIGHTS)] or files
    for suffix in _WEIGHTS:
        total = sum(size for name, size in wanted if name.endswith(suffix))
        if total:
            return total
    return 0


def _config(folder: Path) -> Mapping[str, Any] | None:
    try:
        config = json.loads(_content(folder / "config.json", _MOST_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) else None


def _content(path: Path, most_bytes: int) -> bytes:
    """The first bytes of a file; a pipe or a device in its place is an error, and not waited for."""
    with os.fdopen(open_plain(path), "rb") as file:
        return file.read(most_bytes)


def _expanded(path: str | Path) -> Path:
    """A path with ``~`` of this user or another put in; it stays where there is no such user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # it raises where there is no such user
