"""The part of vllm-monitor that runs inside a vLLM server. Standard library only; keeps still unless told otherwise."""

from vllm_monitor_engine.settings import EngineSettings

__all__ = ["EngineSettings", "__version__"]

__version__ = "0.1.0"
