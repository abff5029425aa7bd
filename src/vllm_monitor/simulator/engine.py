"""The engine: continuous batching with a token budget, paged KV blocks and preemption by recomputation.

It is a discrete-event model. One step takes every running sequence one token further (or a part of a prompt)
and lasts as long as its batch is heavy. As long as nothing changes in a batch its steps are alike, so they are
taken in one leap; the leap ends where a request arrives, ends or runs out of blocks, so nothing is lost.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable

from vllm_monitor.simulator.blocks import BlockPool
from vllm_monitor.simulator.request import FinishReason, Request
from vllm_monitor.simulator.settings import EngineSettings
from vllm_monitor.simulator.statistics import EngineStatistics

__all__ = ["Engine"]


class Engine:
    """One life of the engine. Not thread-safe.

    Requests and aborts are messages: they are read when the next step is planned, so an engine that does not
    step does not see them, and neither do its gauges.

    Args:
        settings: Capacity and speed.
        statistics: Where it counts.
        generator: Randomness of step durations.
        started_at: Simulated time at which it begins.
        on_finish: Called for each request that the engine ends, at its ``last_token_at``.
    """

    def __init__(
        self,
        settings: EngineSettings,
        statistics: EngineStatistics,
        generator: random.Random,
        started_at: float,
        on_finish: Callable[[Request], None],
    ) -> None:
        self._settings = settings
        self._statistics = statistics
        self._random = generator
        self._now = started_at
        self._on_finish = on_finish
        self.blocks = BlockPool(settings)
        self.frozen = False
        self.paused = False
        self.slowness = 1.0
        self._inbox: list[Request] = []
        self._aborts: list[Request] = []
        self._waiting: deque[Request] = deque()
        self._waiting_count = 0
        self._running: list[Request] = []
        self._chunks: list[tuple[Request, int]] = []
        self._step_ends_at: float | None = None
        self._jitter = 1.0
        self._batch_changed = True

    @property
    def has_work(self) -> bool:
        """Whether any request is queued or running, seen or not."""
        return bool(self._inbox or self._running or self._waiting_count)

    def submit(self, request: Request) -> None:
        """Hand over a new request."""
        self._inbox.append(request)

    def abandon(self, request: Request) -> None:
        """Its client is gone; forget it at the next opportunity. Not counted anywhere, as in reality."""
        self._aborts.append(request)

    def thaw(self, frozen_seconds: float) -> None:
        """Go on after a freeze; a step that was under way ends later by the time lost."""
        self.frozen = False
        if self._step_ends_at is not None:
            self._step_ends_at += frozen_seconds

    def abort_all(self) -> None:
        """End everything with finish reason ``abort``, which is counted."""
        self._receive()
        self._step_ends_at = None
        queued = [request for request in self._waiting if not request.is_over]
        for request in (*self._running, *queued):
            self.blocks.release(request)
            self._end(request, FinishReason.ABORT)
        self._running.clear()
        self._waiting.clear()
        self._waiting_count = 0
        self.blocks.forget_prefixes()
        self._publish()

    def run_until(self, limit: float) -> None:
        """Take all steps that end up to ``limit``; one more may be under way afterwards."""
        while not self.frozen:
            if self._step_ends_at is not None:
                if self._step_ends_at > limit:
                    break
                self._complete_step(self._step_ends_at)
            if self.paused or not self._begin_step(limit):
                break
        self._now = max(self._now, limit)

    def _begin_step(self, limit: float) -> bool:
        """Plan a step and take as many like it as fit before ``limit``; false when there is nothing to do."""
        if self._receive():
            self._publish()
        preempted = self._schedule()
        if not self._chunks:
            return False
        prompt_tokens = sum(tokens for request, tokens in self._chunks if tokens > 1 or request.generated == 0)
        duration = self._duration(prompt_tokens, preempted)
        if not prompt_tokens and not preempted:
            steps = self._like_steps(duration, limit)
            if steps > 1:
                self._leap(steps, duration)
                return True
        self._step_ends_at = self._now + duration
        return True

    def _receive(self) -> bool:
        """Read new requests and aborts; true when there were aborts."""
        for request in self._inbox:
            if not request.is_over:
                request.queued_at = self._now
                self._waiting.append(request)
                self._waiting_count += 1
        self._inbox.clear()
        if not self._aborts:
            return False
        for request in self._aborts:
            if request in self._running:
                self._running.remove(request)
                self.blocks.release(request)
                self._batch_changed = True
            elif not math.isnan(request.queued_at) and request.finish_reason is None:
                self._waiting_count -= 1  # it is dropped from the queue when its turn comes
        self._aborts.clear()
        return True

    def _schedule(self) -> int:
        """Choose what the next step computes; returns the number of sequences thrown out for it."""
        self._chunks.clear()
        budget = self._settings.max_num_batched_tokens
        preempted = 0
        index = 0
        while index < len(self._running) and budget > 0:
            request = self._running[index]
            tokens = min(request.pending_tokens, budget)
            wanted = self.blocks.missing(request, tokens)
            while not self.blocks.take(request, wanted):
                preempted += 1
                if self._preempt_last() is request:
                    return preempted
            self._chunks.append((request, tokens))
            budget -= tokens
            index += 1
        if not preempted:
            self._admit(budget)
        return preempted

    def _admit(self, budget: int) -> None:
        """Move waiting requests into the batch while places, tokens and blocks last."""
        while self._waiting and budget > 0 and len(self._running) < self._settings.max_num_seqs:
            request = self._waiting[0]
            if request.is_over:
                self._waiting.popleft()
                continue
            cached = self.blocks.cached_tokens(request)
            request.computed = cached
            tokens = min(request.pending_tokens, budget)
            if not self.blocks.take(request, self.blocks.missing(request, tokens)):
                request.computed = 0
                break
            self._waiting.popleft()
            self._waiting_count -= 1
            self._running.append(request)
            self._batch_changed = True
            self._chunks.append((request, tokens))
            budget -= tokens
            if math.isnan(request.scheduled_at):
                request.scheduled_at = self._now
                request.cached_tokens = cached
                self._statistics.prefix_queries += request.prompt_tokens
                self._statistics.prefix_hits += cached

    def _preempt_last(self) -> Request:
        """Throw the youngest sequence out; all it computed is lost and it goes back to the head of the queue."""
        request = self._running.pop()
        self.blocks.release(request)
        request.computed = 0
        request.preemptions += 1
        self._waiting.appendleft(request)
        self._waiting_count += 1
        self._statistics.preemptions += 1
        self._batch_changed = True
        return request

    def _duration(self, prompt_tokens: int, preempted: int) -> float:
        settings = self._settings
        if self._batch_changed:
            # Drawn once per batch, not per step: results must not depend on how time is cut into pieces.
            self._jitter = math.exp(self._random.gauss(0.0, settings.step_jitter_ratio))
            self._batch_changed = False
        cost = (
            settings.step_base_seconds
            + settings.seconds_per_prompt_token * prompt_tokens
            + settings.seconds_per_sequence * len(self._chunks)
        )
        return self.slowness * cost * self._jitter + settings.preemption_seconds * preempted

    def _like_steps(self, duration: float, limit: float) -> int:
        """How many steps of pure decoding follow each other before anything changes."""
        chunks = self._chunks
        steps = min(request.output_tokens - request.generated for request, _ in chunks)
        steps = min(steps, int((limit - self._now) / duration))
        free = self.blocks.free
        while (
            steps > 1
            and len(chunks) * (steps // self._settings.block_size + 1) > free
            and sum(self.blocks.missing(request, steps) for request, _ in chunks) > free
        ):
            steps //= 2
        return steps

    def _leap(self, steps: int, duration: float) -> None:
        """Take ``steps`` steps of pure decoding at once."""
        statistics = self._statistics
        first_end = self._now + duration
        self._now += steps * duration
        ended: list[Request] = []
        for request, _ in self._chunks:
            self.blocks.take(request, self.blocks.missing(request, steps))
            statistics.inter_token.observe(first_end - request.last_token_at)
            request.computed += steps
            request.generated += steps
            request.last_token_at = self._now
            if request.generated >= request.output_tokens:
                ended.append(request)
        sequences = len(self._chunks)
        statistics.inter_token.observe(duration, (steps - 1) * sequences)
        statistics.generation_tokens += steps * sequences
        statistics.step_tokens.observe(sequences, steps)
        statistics.steps += steps
        self._settle(ended)

    def _complete_step(self, end: float) -> None:
        statistics = self._statistics
        self._now = end
        self._step_ends_at = None
        step_tokens = 0
        ended: list[Request] = []
        for request, tokens in self._chunks:
            is_first = request.generated == 0
            if tokens > 1 or is_first:
                step_tokens += tokens
            request.computed += tokens
            if request.pending_tokens > 0 or request.abandoned:
                continue
            if is_first:
                request.first_token_at = end
                statistics.first_token(request)
                self.blocks.remember_prefix(request)
            else:
                statistics.inter_token.observe(end - request.last_token_at)
            request.last_token_at = end
            request.generated += 1
            step_tokens += 1
            statistics.generation_tokens += 1
            if request.generated >= request.output_tokens:
                ended.append(request)
        statistics.step_tokens.observe(step_tokens)
        statistics.steps += 1
        self._settle(ended)

    def _settle(self, ended: list[Request]) -> None:
        """Let ended requests go and publish the gauges."""
        for request in ended:
            self._running.remove(request)
            self.blocks.release(request)
            is_cut = request.generated >= request.max_tokens
            self._end(request, FinishReason.LENGTH if is_cut else FinishReason.STOP)
            self._batch_changed = True
        self._publish()

    def _end(self, request: Request, reason: FinishReason) -> None:
        request.finish_reason = reason
        if math.isnan(request.last_token_at):
            request.last_token_at = self._now
        self._statistics.request_finished(request, reason)
        self._on_finish(request)

    def _publish(self) -> None:
        self._statistics.publish(
            running=len(self._running), waiting=self._waiting_count, kv_usage_ratio=self.blocks.usage_ratio
        )
