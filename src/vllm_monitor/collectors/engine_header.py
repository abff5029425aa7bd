"""What a spool begins with: which process writes it, with which configuration, and when it reached what of its start.

Like every line of a spool it may have been damaged, or be another's: what does not have the shape of ours is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from vllm_monitor.records import EngineNote

__all__ = ["started_note"]

_FIGURES = ("num_gpu_blocks", "block_size", "kv_capacity_tokens", "kv_engine_tokens")
_PHASE = re.compile(r"[a-z]{1,30}(_[a-z]{1,30}){0,3}_at")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_MOST_FACTS = 100
_MOST_TEXT = 200
_MOST = 1e15


def started_note(header: Mapping[str, Any]) -> EngineNote | None:
    """The header of a spool as the first rare fact that its process tells: ``started``.

    Returns:
        ``None`` when it does not say when that was. ``config`` of its facts are the configuration's values by name.
    """
    at: Any = header.get("t")
    if not _is_number(at) or not 0 < at < 1e11:
        return None
    facts: dict[str, Any] = {
        name: value
        for name, value in list(header.items())[:_MOST_FACTS]
        if (name in _FIGURES or _PHASE.fullmatch(name)) and _is_figure(value)
    }
    fingerprint = header.get("config_fingerprint")
    if isinstance(fingerprint, str) and _FINGERPRINT.fullmatch(fingerprint):
        facts["config_fingerprint"] = fingerprint
    config = header.get("config")
    if isinstance(config, Mapping):
        facts["config"] = {
            name: _plain(value)
            for name, value in list(config.items())[:_MOST_FACTS]
            if _NAME.fullmatch(name) and _is_plain(value)
        }
    return EngineNote(float(at), "started", facts)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_figure(value: Any) -> bool:
    return _is_number(value) and 0 <= value < _MOST


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | bool) or (_is_number(value) and -_MOST < value < _MOST and math.isfinite(value))


def _plain(value: Any) -> Any:
    return value[:_MOST_TEXT].encode("utf-8", "replace").decode() if isinstance(value, str) else value
