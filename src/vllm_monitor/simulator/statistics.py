"""What the engine counts, and what it last published."""

from __future__ import annotations

from vllm_monitor.simulator.catalogue import BUCKETS
from vllm_monitor.simulator.histogram import Histogram
from vllm_monitor.simulator.request import FinishReason, Request

__all__ = ["EngineStatistics", "Readings"]

Readings = dict[str, list[float]]
"""Family name to the values of all its sample lines, row after row."""

# A transformer of about a billion parameters in 16 bits; only proportions matter to a monitor.
_FLOPS_PER_TOKEN = 2.0e9
_BYTES_READ_PER_STEP = 2.0e9
_BYTES_WRITTEN_PER_TOKEN = 1.0e5


class EngineStatistics:
    """Counters, histograms and published gauges of one life of the engine.

    Everything changes only when a step ends, so an engine that does not step shows its last values for ever;
    that is what a hung or paused server looks like.
    """

    def __init__(self) -> None:
        self.running = 0
        self.waiting = 0
        self.kv_usage_ratio = 0.0
        self.steps = 0
        self.prompt_tokens = 0
        self.cached_prompt_tokens = 0
        self.generation_tokens = 0
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self.finished = dict.fromkeys(FinishReason, 0)
        self._histograms = {name: Histogram(bounds) for name, bounds in BUCKETS.items() if ":" in name}
        self.step_tokens = self._histograms["vllm:iteration_tokens_total"]
        self.inter_token = self._histograms["vllm:inter_token_latency_seconds"]
        self._first_token = self._histograms["vllm:time_to_first_token_seconds"]

    def publish(self, *, running: int, waiting: int, kv_usage_ratio: float) -> None:
        """Set the gauges."""
        self.running = running
        self.waiting = waiting
        self.kv_usage_ratio = kv_usage_ratio

    def first_token(self, request: Request) -> None:
        """The prompt of ``request`` is done and its first token is out."""
        self.prompt_tokens += request.prompt_tokens
        self.cached_prompt_tokens += request.cached_tokens
        self._first_token.observe(request.first_token_at - request.arrived_at)

    def request_finished(self, request: Request, reason: FinishReason) -> None:
        """``request`` ended at its ``last_token_at``, for ``reason``."""
        self.finished[reason] += 1
        if request.generated == 0:
            return
        decode_seconds = request.last_token_at - request.first_token_at
        observations: tuple[tuple[str, float], ...] = (
            ("request_prompt_tokens", request.prompt_tokens),
            ("request_generation_tokens", request.generated),
            ("request_max_num_generation_tokens", request.generated),
            ("request_params_n", 1.0),
            ("request_params_max_tokens", request.max_tokens),
            ("request_time_per_output_token_seconds", decode_seconds / max(1, request.generated - 1)),
            ("e2e_request_latency_seconds", request.last_token_at - request.arrived_at),
            ("request_queue_time_seconds", request.scheduled_at - request.queued_at),
            ("request_inference_time_seconds", request.last_token_at - request.scheduled_at),
            ("request_prefill_time_seconds", request.first_token_at - request.scheduled_at),
            ("request_decode_time_seconds", decode_seconds),
            ("request_num_preemptions", request.preemptions),
            ("request_prefill_kv_computed_tokens", request.prompt_tokens - request.cached_tokens),
        )
        for name, value in observations:
            self._histograms[f"vllm:{name}"].observe(value)

    def readings(self) -> Readings:
        """All of it, as the page shows it."""
        waiting = float(self.waiting)
        cached = float(self.cached_prompt_tokens)
        tokens = float(self.prompt_tokens + self.generation_tokens)
        readings: Readings = {
            "vllm:estimated_flops_per_gpu_total": [_FLOPS_PER_TOKEN * tokens],
            "vllm:estimated_read_bytes_per_gpu_total": [_BYTES_READ_PER_STEP * self.steps],
            "vllm:estimated_write_bytes_per_gpu_total": [_BYTES_WRITTEN_PER_TOKEN * tokens],
            "vllm:num_requests_running": [float(self.running)],
            "vllm:num_requests_waiting": [waiting],
            "vllm:num_requests_waiting_by_reason": [waiting, 0.0],
            "vllm:engine_sleep_state": [1.0, 0.0, 0.0],
            "vllm:kv_cache_usage_perc": [self.kv_usage_ratio],
            "vllm:prefix_cache_queries_total": [float(self.prefix_queries)],
            "vllm:prefix_cache_hits_total": [float(self.prefix_hits)],
            "vllm:external_prefix_cache_queries_total": [0.0],
            "vllm:external_prefix_cache_hits_total": [0.0],
            "vllm:mm_cache_queries_total": [0.0],
            "vllm:mm_cache_hits_total": [0.0],
            "vllm:num_preemptions_total": [float(self.preemptions)],
            "vllm:prompt_tokens_total": [float(self.prompt_tokens)],
            "vllm:prompt_tokens_by_source_total": [float(self.prompt_tokens) - cached, cached, 0.0],
            "vllm:prompt_tokens_cached_total": [cached],
            "vllm:prompt_tokens_cached_by_source_total": [cached, 0.0, 0.0, 0.0, 0.0],
            "vllm:generation_tokens_total": [float(self.generation_tokens)],
            "vllm:request_success_total": [float(self.finished[reason]) for reason in FinishReason],
            "vllm:admission_rejections_total": [0.0, 0.0],
            "vllm:cache_config_info": [1.0],
        }
        for name, histogram in self._histograms.items():
            readings[name] = histogram.samples()
        return readings
