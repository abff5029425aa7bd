"""What a server was configured with, as far as it decides how the server behaves, and one number over all of it.

Never secrets: only what is named here is taken, and a place of a model loses what comes before its host and after its
path. What a version of vLLM does not have, or has in a shape that is not known, is left out.
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["asked", "config_facts", "config_fingerprint", "kv_facts"]

CONFIG_FACTS = {
    "model_config": (
        "model", "revision", "tokenizer", "dtype", "quantization", "max_model_len", "seed", "enforce_eager", "runner",
        "enable_sleep_mode",
    ),
    "cache_config": (
        "cache_dtype", "block_size", "enable_prefix_caching", "gpu_memory_utilization", "num_gpu_blocks_override",
        "cpu_kvcache_space_bytes", "sliding_window",
    ),
    "parallel_config": (
        "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "decode_context_parallel_size",
        "enable_expert_parallel", "distributed_executor_backend",
    ),
    "scheduler_config": (
        "max_num_seqs", "max_num_batched_tokens", "max_num_queued_reqs", "max_num_queued_tokens",
        "enable_chunked_prefill", "long_prefill_token_threshold", "policy", "async_scheduling",
    ),
    "load_config": ("load_format",),
    "lora_config": ("max_loras", "max_lora_rank"),
    "speculative_config": ("method", "num_speculative_tokens"),
    "compilation_config": ("level", "mode", "cudagraph_mode"),
    "attention_config": ("backend",),
    "kv_transfer_config": ("kv_connector", "kv_role"),
}  # fmt: skip
"""Sections of vLLM's configuration, and what of them is taken. What vLLM finds out by measuring is not among it: the
number of blocks is another one after each start."""
AMBIGUOUS = {"backend", "model", "method", "level", "mode", "policy"}
MOST_TEXT = 200
_BEFORE_HOST = re.compile(r"(?<=://)[^/@]*@")


def config_facts(vllm_config: Any, vllm_version: str | None = None) -> dict[str, Any]:
    """The configuration as plain values by name; never raises.

    Args:
        vllm_config: vLLM's configuration.
        vllm_version: The version, which decides as much as any flag.
    """
    facts: dict[str, Any] = {} if vllm_version is None else {"vllm_version": vllm_version}
    for section, names in CONFIG_FACTS.items():
        source = asked(vllm_config, section)
        for name in names:
            value = _plain(asked(source, name))
            if value is not None:
                prefix = section.removesuffix("_config")
                full = f"{prefix}_{name}" if name in AMBIGUOUS and prefix != name else name
                facts[full] = value
    return facts


def config_fingerprint(facts: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal digits, of facts in their one form: the same whatever order they are told in."""
    text = json.dumps(dict(facts), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def kv_facts(vllm_config: Any) -> dict[str, int]:
    """What the KV cache holds, as far as it is known by now; never raises.

    ``kv_capacity_tokens`` are blocks times their size: of all engines of this client. A model with several kinds of
    layers holds fewer; ``kv_engine_tokens`` is what vLLM itself says of one engine, where it does.
    """
    cache = asked(vllm_config, "cache_config")
    blocks, size = _count(asked(cache, "num_gpu_blocks")), _count(asked(cache, "block_size"))
    facts = {"num_gpu_blocks": blocks, "block_size": size, "kv_capacity_tokens": None}
    if blocks is not None and size is not None:
        facts["kv_capacity_tokens"] = blocks * size
    facts["kv_engine_tokens"] = _count(asked(cache, "kv_cache_size_tokens"))
    return {name: value for name, value in facts.items() if value is not None}


def asked(source: Any, name: str) -> Any:
    """An attribute; ``None`` where there is none, or none that can be read. Never raises."""
    try:
        return getattr(source, name, None)
    except Exception:  # whatever it is that cannot be asked
        return None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53 else None


def _plain(value: Any) -> str | int | float | None:
    """A value that is the same after each start; whatever else, as an object with an address, is none."""
    if isinstance(value, enum.Enum):
        return str(value.name)
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return value if math.isfinite(value) and abs(value) < 2**63 else None
    if type(value).__module__ == "torch":  # a dtype
        value = str(value)
    if isinstance(value, str) and value:
        return _BEFORE_HOST.sub("", value.partition("?")[0])[:MOST_TEXT]
    return None
