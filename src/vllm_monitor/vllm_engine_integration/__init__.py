"""Engines that serve no HTTP: batches through ``vllm.LLM``, recorded into a store like a server."""

from vllm_monitor.vllm_engine_integration.monitored_engine import MonitoredEngine, create_monitored_engine

__all__ = ["MonitoredEngine", "create_monitored_engine"]
