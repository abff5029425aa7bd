"""vllm-monitor: watches vLLM inference servers and remembers everything.

The names below are imported when first used, so that ``import vllm_monitor`` stays as cheap as its smallest use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_monitor.core import MonitorConfig, VLLMMonitor

__all__ = ["MonitorConfig", "VLLMMonitor", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("MonitorConfig", "VLLMMonitor"):
        return getattr(import_module("vllm_monitor.core"), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(__all__)
