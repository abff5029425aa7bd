"""Who sends requests: random clients, and a schedule of arrivals given in advance."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from vllm_monitor.simulator.request import Request
from vllm_monitor.simulator.settings import EngineSettings, LoadSettings

__all__ = ["Arrival", "Workload"]


@dataclass(frozen=True, slots=True, order=True)
class Arrival:
    """A request that is known in advance, for instance from a trace of a real service.

    Args:
        at_seconds: When it arrives, in seconds of simulated time.
        prompt_tokens: Length of its prompt.
        output_tokens: Length of its answer.
    """

    at_seconds: float
    prompt_tokens: int
    output_tokens: int


class Workload:
    """Poisson arrivals with log-normal lengths, and scheduled ones beside them. Not thread-safe.

    Args:
        load: Rate and lengths.
        engine: Bounds the length of a sequence.
        generator: Randomness of arrivals and lengths.
        scheduled: Arrivals known in advance, in any order.
    """

    def __init__(
        self,
        load: LoadSettings,
        engine: EngineSettings,
        generator: random.Random,
        scheduled: Iterable[Arrival] = (),
    ) -> None:
        self._load = load
        self._max_model_len = engine.max_model_len
        self._random = generator
        self._scheduled = deque(sorted(scheduled))
        self._rate = load.requests_per_second
        self._output_multiplier = 1.0
        self._next_random_at = self._draw_gap()

    @property
    def next_at(self) -> float:
        """When the next request arrives; infinity when none will."""
        if self._scheduled:
            return min(self._next_random_at, self._scheduled[0].at_seconds)
        return self._next_random_at

    def modify(self, now: float, *, rate_multiplier: float, output_multiplier: float) -> None:
        """Change rate and length of answers from ``now`` on."""
        self._output_multiplier = output_multiplier
        rate = self._load.requests_per_second * rate_multiplier
        if rate != self._rate:
            self._rate = rate
            self._next_random_at = now + self._draw_gap()

    def take(self) -> Request:
        """The request that arrives at :attr:`next_at`."""
        if self._scheduled and self._scheduled[0].at_seconds <= self._next_random_at:
            arrival = self._scheduled.popleft()
            return self._make(arrival.at_seconds, arrival.prompt_tokens, arrival.output_tokens)
        at = self._next_random_at
        self._next_random_at = at + self._draw_gap()
        prompt = self._draw_length(self._load.mean_prompt_tokens)
        output = self._draw_length(self._load.mean_output_tokens * self._output_multiplier)
        return self._make(at, prompt, output)

    def _make(self, at: float, prompt: int, output: int) -> Request:
        groups = self._load.prefix_groups
        prompt = max(1, min(prompt, self._max_model_len - 1))
        output = max(1, min(output, self._max_model_len - prompt))
        room = self._max_model_len - prompt
        return Request(
            prompt_tokens=prompt,
            output_tokens=output,
            max_tokens=output if self._random.random() < 0.3 else min(2 * output, room),
            arrived_at=at,
            gives_up_at=at + self._load.client_timeout_seconds,
            prefix_group=self._random.randrange(groups) if groups else -1,
            prefix_tokens=self._load.prefix_tokens,
        )

    def _draw_gap(self) -> float:
        return self._random.expovariate(self._rate) if self._rate > 0 else math.inf

    def _draw_length(self, mean: float) -> int:
        sigma = self._load.length_sigma
        return max(1, round(self._random.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)))
