"""Whether the model is there, complete, and long enough for what the command asks of it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from vllm_monitor.doctor.findings import Finding, Level
from vllm_monitor.doctor.launch import Launch
from vllm_monitor.doctor.model_files import ModelFiles, is_path, why_absent
from vllm_monitor.doctor.subject import Subject
from vllm_monitor.doctor.wording import shortened, size

__all__ = ["check_model"]

_LENGTH_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length")
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_HUB_NAME = re.compile(r"(?:[\w.-]{1,96}/)?[\w.-]{1,96}")
_MOST_NESTED = 4
_CHECK = "model"


def check_model(subject: Subject) -> Iterator[Finding]:
    """The model of the command: files, configuration, length."""
    launch = subject.launch
    if launch is None:
        return
    if launch.model is None:
        advice = "Name it: vllm serve MODEL, or --model MODEL."
        yield Finding(_CHECK, Level.NOTE, "the command names no model, so vLLM takes its default one", advice)
        return
    files = subject.model_files
    if files is None:
        yield _absent(launch.model, is_offline=subject.is_set("HF_HUB_OFFLINE"))
        return
    if not files.folder.is_dir() and not files.folder.is_file():
        message = f"{files.folder} is neither a folder nor a file"
        yield Finding(_CHECK, Level.PROBLEM, message, "Name the folder of the model.")
    if files.folder.is_dir():
        yield from _complete(files)
    if files.config is not None:
        yield from _length(launch, files.config, may_be_longer=subject.is_set("VLLM_ALLOW_LONG_MAX_MODEL_LEN"))


def _absent(model: str, *, is_offline: bool) -> Finding:
    name = shortened(model)
    if _ADDRESS.match(model):
        message = f"{name} is an address: what lies there was not looked at"
        return Finding(_CHECK, Level.UNKNOWN, message, "See that vLLM can read it (--load-format).")
    if is_path(model):
        cause = why_absent(model)
        why = "" if cause is None or cause.errno == errno.ENOENT else f": {cause.strerror}"
        level = Level.UNKNOWN if cause is not None and cause.errno == errno.EACCES else Level.PROBLEM
        said = f"{name} cannot be looked at" if level is Level.UNKNOWN else f"there is no model at {name}"
        return Finding(_CHECK, level, f"{said}{why}", "Correct the path, or mount the volume.")
    if not _HUB_NAME.fullmatch(model):
        message = f"{name} is neither a folder that is here nor a name that a hub can have"
        return Finding(_CHECK, Level.PROBLEM, message, "Correct the name.")
    if is_offline:
        message = f"{name} was not downloaded and HF_HUB_OFFLINE is set: it cannot be loaded"
        return Finding(_CHECK, Level.PROBLEM, message, "Download it first, or unset HF_HUB_OFFLINE.")
    message = f"{name} is not on this machine: it will be downloaded, and its size and length are not known yet"
    return Finding(_CHECK, Level.NOTE, message, "Download it before the start that counts.")


def _complete(files: ModelFiles) -> Iterator[Finding]:
    data = {"folder": str(files.folder), "weights_bytes": files.weights_bytes}
    if files.config is None:
        has_one = os.path.lexists(files.folder / "config.json")
        message = f"config.json in {files.folder} cannot be read" if has_one else f"no config.json in {files.folder}"
        yield Finding(_CHECK, Level.PROBLEM, message, "Copy the whole folder of the model.", data=data)
    if not files.weights_bytes:
        message = f"no weights (*.safetensors, *.bin) in {files.folder}"
        yield Finding(
            _CHECK, Level.PROBLEM, message, "Copy the whole folder of the model, not the links in it.", data=data
        )
    if files.config is not None and files.weights_bytes:
        yield Finding(_CHECK, Level.OK, f"{size(files.weights_bytes)} of weights in {files.folder}", data=data)


def _length(launch: Launch, config: Mapping[str, Any], *, may_be_longer: bool) -> Iterator[Finding]:
    inner = config.get("text_config")
    config = inner if isinstance(inner, dict) else config
    known = [value for name in _LENGTH_NAMES if type(value := config.get(name)) is int]
    wanted = launch.number("max-model-len")
    if wanted is None or not known or wanted <= max(known):
        return
    message = f"--max-model-len {wanted:.0f} is longer than the {max(known)} positions of the model"
    is_scaled = any(_is_scaled(config.get(name)) for name in ("rope_scaling", "rope_parameters"))
    if may_be_longer or is_scaled:
        why = "VLLM_ALLOW_LONG_MAX_MODEL_LEN allows it" if may_be_longer else "its positions are scaled"
        advice = "Look at what it answers beyond that: it may be nonsense."
        yield Finding(_CHECK, Level.WARNING, f"{message}, and {why}", advice)
    else:
        yield Finding(_CHECK, Level.PROBLEM, f"{message}: vLLM will not start", f"Take at most {max(known)}.")


def _is_scaled(rope: object, nested: int = 0) -> bool:
    """Whether positions are stretched: then the model takes more of them than it was trained on."""
    if not isinstance(rope, dict) or nested > _MOST_NESTED:
        return False
    kind = rope.get("rope_type", rope.get("type", "default"))
    return kind != "default" or any(_is_scaled(one, nested + 1) for one in rope.values())
