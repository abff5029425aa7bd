"""Whether the model is there, complete, and long enough for what the command asks of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_monitor.doctor.findings import Finding, Level
from vllm_monitor.doctor.launch import Launch
from vllm_monitor.doctor.model_files import ModelFiles, is_path
from vllm_monitor.doctor.subject import Subject
from vllm_monitor.doctor.wording import size

__all__ = ["check_model"]

_LENGTH_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length")
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
    if files.folder.is_dir():
        yield from _complete(files)
    if files.config is not None:
        yield from _length(launch, files.config, may_be_longer=subject.is_set("VLLM_ALLOW_LONG_MAX_MODEL_LEN"))


def _absent(model: str, *, is_offline: bool) -> Finding:
    if is_path(model):
        return Finding(_CHECK, Level.PROBLEM, f"there is no model at {model}", "Correct the path, or mount the volume.")
    if is_offline:
        message = f"{model} was not downloaded and HF_HUB_OFFLINE is set: it cannot be loaded"
        return Finding(_CHECK, Level.PROBLEM, message, "Download it first, or unset HF_HUB_OFFLINE.")
    message = f"{model} is not on this machine: it will be downloaded, and its size and length are not known yet"
    return Finding(_CHECK, Level.NOTE, message, "Download it before the start that counts.")


def _complete(files: ModelFiles) -> Iterator[Finding]:
    data = {"folder": str(files.folder), "weights_bytes": files.weights_bytes}
    if files.config is None:
        has_one = (files.folder / "config.json").exists()
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
    known = [value for name in _LENGTH_NAMES if isinstance(value := config.get(name), int)]
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


def _is_scaled(rope: object) -> bool:
    """Whether positions are stretched: then the model takes more of them than it was trained on."""
    if not isinstance(rope, dict):
        return False
    kind = rope.get("rope_type", rope.get("type", "default"))
    return kind != "default" or any(map(_is_scaled, rope.values()))
