"""vllm-monitor: watches vLLM inference servers and remembers everything."""

__version__ = "0.1.0"
