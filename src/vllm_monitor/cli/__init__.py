"""The command line. ``main`` is the console script ``vllm-monitor``."""

from vllm_monitor.cli.app import main

__all__ = ["main"]
