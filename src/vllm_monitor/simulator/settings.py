"""How big, how fast and how busy the simulated server is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from vllm_monitor.errors import ConfigurationError

__all__ = ["EngineSettings", "LoadSettings", "ServerSettings"]


MOST_REQUESTS_PER_SECOND = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Capacity and speed of the engine; the defaults resemble a small model on a modest accelerator.

    A step takes ``step_base_seconds + prompt tokens * seconds_per_prompt_token + sequences *
    seconds_per_sequence``, times a jitter, plus ``preemption_seconds`` for each sequence that is thrown out.

    Args:
        max_num_seqs: Most sequences in one batch.
        max_num_batched_tokens: Most tokens computed in one step.
        block_size: Tokens per block of the KV cache.
        num_blocks: Blocks of the KV cache.
        max_model_len: Longest sequence, prompt and output together, in tokens. One such sequence must fit.
        step_base_seconds: Fixed cost of a step.
        seconds_per_prompt_token: Cost of computing one prompt token.
        seconds_per_sequence: Cost of one more sequence that decodes.
        preemption_seconds: Cost of throwing a sequence out; its recomputation costs extra.
        step_jitter_ratio: Standard deviation of the jitter of a step's duration, relative.
    """

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    num_blocks: int = 2048
    max_model_len: int = 2048
    step_base_seconds: float = 0.012
    seconds_per_prompt_token: float = 0.000_12
    seconds_per_sequence: float = 0.000_4
    preemption_seconds: float = 0.05
    step_jitter_ratio: float = 0.08

    def __post_init__(self) -> None:
        _require_positive(self, "max_num_seqs", "max_num_batched_tokens", "block_size", "num_blocks")
        _require_positive(self, "max_model_len", "step_base_seconds")
        _require_not_negative(self, "seconds_per_prompt_token", "seconds_per_sequence", "preemption_seconds")
        _require_not_negative(self, "step_jitter_ratio")
        if self.blocks_for(self.max_model_len) > self.num_blocks:
            raise ConfigurationError(
                f"one sequence of {self.max_model_len} tokens does not fit into {self.num_blocks} blocks",
                hint="Raise num_blocks or lower max_model_len.",
            )

    def blocks_for(self, tokens: int) -> int:
        """Blocks that ``tokens`` tokens occupy."""
        return -(-tokens // self.block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSettings:
    """The background load: clients that send requests at random and give up after a while.

    Args:
        requests_per_second: Mean of the Poisson arrivals; 0 for no background load.
        mean_prompt_tokens: Mean length of a prompt (log-normal).
        mean_output_tokens: Mean length of an answer (log-normal).
        length_sigma: Spread of both, as the sigma of the logarithm.
        prefix_groups: Number of different prompt beginnings that requests share; 0 for none.
        prefix_tokens: Length of a shared beginning.
        client_timeout_seconds: A client hangs up after this long.
    """

    requests_per_second: float = 2.0
    mean_prompt_tokens: float = 180.0
    mean_output_tokens: float = 100.0
    length_sigma: float = 0.6
    prefix_groups: int = 4
    prefix_tokens: int = 64
    client_timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        _require_not_negative(self, "requests_per_second", "length_sigma", "prefix_groups", "prefix_tokens")
        _require_positive(self, "mean_prompt_tokens", "mean_output_tokens", "client_timeout_seconds")
        if self.requests_per_second > MOST_REQUESTS_PER_SECOND:
            raise ConfigurationError(
                f"{self.requests_per_second:g} requests per second are more than a simulator can hold in memory",
                hint=f"Give at most {MOST_REQUESTS_PER_SECOND:g}; any server is saturated long before that.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Everything about the simulated server but its faults.

    Args:
        engine: Capacity and speed.
        load: Background load.
        model: Name of the served model.
        restart_seconds: How long a crashed server stays away when its fault names no duration.
        restarts: Whether a crashed server comes back at all.
        failing_seconds: How long a dead engine answers 503 before the port closes; at most 1.
        memory_limit_bytes: The server is killed when its resident memory reaches this; none by default.
    """

    engine: EngineSettings = field(default_factory=EngineSettings)
    load: LoadSettings = field(default_factory=LoadSettings)
    model: str = "simulated"
    restart_seconds: float = 30.0
    restarts: bool = True
    failing_seconds: float = 0.8
    memory_limit_bytes: float = math.inf

    def __post_init__(self) -> None:
        _require_positive(self, "restart_seconds", "failing_seconds")
        if self.failing_seconds > 1.0:
            raise ConfigurationError(
                f"failing_seconds = {self.failing_seconds} is not what a real server does",
                hint="A real server closes its port within a second; give a number up to 1.",
            )
        if not self.model or not self.model.isprintable():
            raise ConfigurationError(
                f"the model name {self.model!r} cannot be shown", hint="Give a short printable name."
            )


def _require_positive(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not (value > 0 and math.isfinite(value)):
            raise ConfigurationError(f"{name} = {value} makes no sense", hint="Give a number above 0.")


def _require_not_negative(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not (value >= 0 and math.isfinite(value)):
            raise ConfigurationError(f"{name} = {value} makes no sense", hint="Give 0 or a number above 0.")
