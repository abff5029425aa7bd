"""Canonical metric names: one vocabulary for all versions of vLLM.

A scraped series keeps its name on the page. Everything above the store speaks canonical names instead, without
colons and with units, which are the same for every version. :data:`FAMILIES` says which names on a page a
canonical name may have (the first that is there counts), :data:`DERIVED` what the picture computes from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["CORE_NAMES", "DERIVED", "FAMILIES", "Family", "Kind", "canonical_help", "is_known_family"]


class Kind(Enum):
    """How the columns of a family become one number."""

    GAUGE_SUM = "gauge, summed over its series"
    GAUGE_MAX = "gauge, the largest of its series"
    GAUGE_MIN = "gauge, the smallest of its series"
    COUNTER = "counter, summed over its series"
    HISTOGRAM = "histogram, summed over its series"


@dataclass(frozen=True, slots=True)
class Family:
    """One canonical name and where its value stands on a page.

    Args:
        name: The canonical name.
        kind: How its series are combined.
        aliases: Names on the page, newest first. For a histogram the name of the family.
        help: Meaning and unit, one sentence.
        label: Only series whose label ``label[0]`` has a value that starts with one of ``label[1]`` count.
    """

    name: str
    kind: Kind
    aliases: tuple[str, ...]
    help: str
    label: tuple[str, tuple[str, ...]] | None = None


FAMILIES: tuple[Family, ...] = (
    Family(
        "requests_running",
        Kind.GAUGE_SUM,
        ("vllm:num_requests_running",),
        "Requests in the running batch, over all engines.",
    ),
    Family(
        "requests_waiting",
        Kind.GAUGE_SUM,
        ("vllm:num_requests_waiting",),
        "Requests that wait for a place in the batch, over all engines.",
    ),
    Family(
        "kv_cache_usage_ratio",
        Kind.GAUGE_MAX,
        ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        "Share of the KV cache in use, 0 to 1, of the fullest engine.",
    ),
    Family(
        "engine_awake",
        Kind.GAUGE_MIN,
        ("vllm:engine_sleep_state",),
        "1 while every engine is awake, 0 while one sleeps.",
        label=("sleep_state", ("awake",)),
    ),
    Family(
        "api_resident_memory_bytes",
        Kind.GAUGE_SUM,
        ("process_resident_memory_bytes",),
        "Resident memory of the API server process.",
    ),
    Family("api_open_fds", Kind.GAUGE_SUM, ("process_open_fds",), "Open file descriptors of the API server."),
    Family("api_max_fds", Kind.GAUGE_SUM, ("process_max_fds",), "Limit of open file descriptors."),
    Family(
        "api_start_time_seconds",
        Kind.GAUGE_MAX,
        ("process_start_time_seconds",),
        "Unix time at which the API server started.",
    ),
    Family(
        "generation_tokens_total",
        Kind.COUNTER,
        ("vllm:generation_tokens_total",),
        "Tokens generated since the server started.",
    ),
    Family(
        "prompt_tokens_total",
        Kind.COUNTER,
        ("vllm:prompt_tokens_total",),
        "Prompt tokens processed since the server started.",
    ),
    Family(
        "engine_steps_total",
        Kind.COUNTER,
        ("vllm:iteration_tokens_total_count",),
        "Engine steps since the server started.",
    ),
    Family(
        "preemptions_total",
        Kind.COUNTER,
        ("vllm:num_preemptions_total",),
        "Requests thrown out of the batch for want of KV cache.",
    ),
    Family(
        "requests_finished_total",
        Kind.COUNTER,
        ("vllm:request_success_total",),
        "Requests finished, for whatever reason (client disconnects are not counted by vLLM).",
    ),
    Family(
        "requests_failed_total",
        Kind.COUNTER,
        ("vllm:request_success_total",),
        "Requests that the engine ended with an error or an abort.",
        label=("finished_reason", ("abort", "error")),
    ),
    Family(
        "requests_first_token_total",
        Kind.COUNTER,
        ("vllm:time_to_first_token_seconds_count",),
        "Requests that got their first token.",
    ),
    Family(
        "prefix_cache_queries_total",
        Kind.COUNTER,
        ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
        "Prompt tokens looked up in the prefix cache.",
    ),
    Family(
        "prefix_cache_hits_total",
        Kind.COUNTER,
        ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
        "Prompt tokens found in the prefix cache.",
    ),
    Family(
        "admission_rejections_total",
        Kind.COUNTER,
        ("vllm:admission_rejections_total",),
        "Requests refused at the door by a queue limit (counted by vLLM from 0.32 on).",
    ),
    Family("http_requests_total", Kind.COUNTER, ("http_requests_total",), "HTTP requests answered."),
    Family(
        "http_server_errors_total",
        Kind.COUNTER,
        ("http_requests_total",),
        "HTTP requests answered with a status of 500 and above (errors inside a stream are not among them).",
        label=("status", ("5",)),
    ),
    Family(
        "http_client_errors_total",
        Kind.COUNTER,
        ("http_requests_total",),
        "HTTP requests answered with a status of 400 to 499.",
        label=("status", ("4",)),
    ),
    Family(
        "api_cpu_seconds_total",
        Kind.COUNTER,
        ("process_cpu_seconds_total",),
        "CPU time of the API server process.",
    ),
    Family(
        "time_to_first_token_seconds",
        Kind.HISTOGRAM,
        ("vllm:time_to_first_token_seconds",),
        "Time from arrival to the first token.",
    ),
    Family(
        "inter_token_latency_seconds",
        Kind.HISTOGRAM,
        ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
        "Time between two tokens of a request.",
    ),
    Family(
        "e2e_request_latency_seconds",
        Kind.HISTOGRAM,
        ("vllm:e2e_request_latency_seconds",),
        "Time from arrival to the last token.",
    ),
    Family(
        "request_queue_time_seconds",
        Kind.HISTOGRAM,
        ("vllm:request_queue_time_seconds", "vllm:time_in_queue_requests"),
        "Time a request waited for its place in the batch.",
    ),
    Family(
        "request_prefill_time_seconds",
        Kind.HISTOGRAM,
        ("vllm:request_prefill_time_seconds",),
        "Time a request spent in prefill.",
    ),
    Family(
        "request_decode_time_seconds",
        Kind.HISTOGRAM,
        ("vllm:request_decode_time_seconds",),
        "Time a request spent in decode.",
    ),
)

CORE_NAMES = (
    "requests_running",
    "requests_waiting",
    "kv_cache_usage_ratio",
    "generation_tokens_total",
    "prompt_tokens_total",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
)
"""Names without which the picture is poor; a page that lacks one is reported once."""

DERIVED: dict[str, str] = {
    "generation_tokens_per_second": "Tokens generated per second, over the last 10 s.",
    "prompt_tokens_per_second": "Prompt tokens processed per second, over the last 10 s.",
    "engine_steps_per_second": "Engine steps per second, over the last 10 s.",
    "requests_finished_per_second": "Requests finished per second, over the last 10 s.",
    "requests_failed_per_second": "Requests ended with error or abort per second, over the last 10 s.",
    "preemptions_per_second": "Preemptions per second, over the last 10 s.",
    "admission_rejections_per_second": "Requests refused at the door per second, over the last 10 s.",
    "http_requests_per_second": "HTTP requests answered per second, over the last 10 s.",
    "http_server_errors_per_second": "HTTP answers of status 5xx per second, over the last 10 s.",
    "http_client_errors_per_second": "HTTP answers of status 4xx per second, over the last 10 s.",
    "api_cpu_ratio": "CPU cores used by the API server process, over the last 10 s.",
    "prefix_cache_hit_ratio": "Share of prompt tokens found in the prefix cache, over the last 60 s.",
    "time_to_first_token_p50_seconds": "Median time to first token, over the last 60 s.",
    "time_to_first_token_p95_seconds": "95th percentile of time to first token, over the last 60 s.",
    "inter_token_latency_p50_seconds": "Median time between tokens, over the last 60 s.",
    "inter_token_latency_p95_seconds": "95th percentile of time between tokens, over the last 60 s.",
    "inside_requests_in_flight": "Requests in flight, as our part inside the server counts them.",
    "inside_oldest_request_seconds": "Age of the oldest request in flight, likewise.",
    "inside_silent_seconds": "How long our part inside the server has told nothing, although the server answers.",
    "inside_lost_total": "Steps and lines that our part inside the server could not keep.",
    "inside_faults_total": "Faults of our own part inside the server; the server goes on without what they cost.",
    "inside_stalled_seconds": "How long no engine step has come although requests are in flight, likewise.",
    "inter_token_latency_longest_seconds": "Longest time between two tokens over the last 60 s, up to its bucket.",
    "e2e_request_latency_p50_seconds": "Median request latency, over the last 60 s.",
    "e2e_request_latency_p95_seconds": "95th percentile of request latency, over the last 60 s.",
    "request_queue_time_p50_seconds": "Median queue time, over the last 60 s.",
    "request_queue_time_p95_seconds": "95th percentile of queue time, over the last 60 s.",
    "request_prefill_time_p50_seconds": "Median prefill time, over the last 60 s.",
    "request_prefill_time_p95_seconds": "95th percentile of prefill time, over the last 60 s.",
    "request_decode_time_p50_seconds": "Median decode time, over the last 60 s.",
    "request_decode_time_p95_seconds": "95th percentile of decode time, over the last 60 s.",
    "api_resident_memory_growth_bytes_per_second": "Growth of the API server's memory per second, over the last 30 s.",
    "api_resident_memory_growth_seconds": "How long the API server's memory has been growing without a fall.",
    "requests_waiting_growth_per_second": "Growth of the queue per second, over the last 30 s.",
    "requests_vanished_per_second": "Requests that began, and ended without vLLM counting them, per second, over 30 s.",
    "prefix_cache_hit_ratio_usual": "What prefix_cache_hit_ratio has been over the last hour or so.",
    "progress_age_seconds": "Age of the last sign of progress (a token or an engine step) on the newest page.",
    "scrape_duration_seconds": "How long the newest page took to arrive.",
    "health_latency_seconds": "How long the newest answer of /health took.",
    "canary_latency_seconds": "How long our newest 1-token request took.",
    "canary_ok": "1 when our newest 1-token request got its token, else 0.",
    "server_load": "HTTP requests in flight by /load, where the server tracks them.",
    "established_connections": "Established TCP connections to the server's port.",
    "listen_queue": "Connections that wait to be accepted by the API server.",
    "host_cpu_percent": "CPU in use on the server's host, 0 to 100.",
    "host_cpu_pressure_percent": "Share of the last 10 s in which a task waited for a CPU (PSI), 0 to 100.",
    "host_memory_pressure_percent": "Share of the last 10 s in which a task waited for memory (PSI), 0 to 100.",
    "host_memory_available_bytes": "Memory of the host that can be had without swapping.",
}
"""What the picture computes; the rest of ``Snapshot.values`` are the names of :data:`FAMILIES`."""

# Families of vLLM 0.24 to 0.32 that the picture does not use (stored all the same). Anything else under
# ``vllm:`` is reported once as unknown, so that a renamed metric is noticed instead of silently missing.
_OTHER_FAMILIES = frozenset(
    {
        "cache_config_info",
        "corrupted_requests",
        "estimated_flops_per_gpu",
        "estimated_read_bytes_per_gpu",
        "estimated_write_bytes_per_gpu",
        "external_prefix_cache_hits",
        "external_prefix_cache_queries",
        "iteration_tokens",
        "lora_requests_info",
        "mm_cache_hits",
        "mm_cache_queries",
        "num_requests_kv_fetch_by_stage",
        "num_requests_waiting_by_reason",
        "prompt_tokens_by_source",
        "prompt_tokens_cached",
        "prompt_tokens_cached_by_source",
        "request_generation_tokens",
        "request_inference_time_seconds",
        "request_max_num_generation_tokens",
        "request_num_preemptions",
        "request_params_best_of",
        "request_params_max_tokens",
        "request_params_n",
        "request_prefill_kv_computed_tokens",
        "request_prompt_tokens",
        "request_time_per_output_token_seconds",
        "rl_weight_update_operation_duration_seconds",
        "rl_weight_update_operations_in_flight",
        "sleep_mode_operation_duration_seconds",
        "sleep_mode_operations_in_flight",
        "tool_call_parser_invocations",
        "watermark_requests",
    }
)
_OTHER_PREFIXES = (
    "diffusion",
    "hf3fs_",
    "hisparse_",
    "kv_block_",
    "kv_offload_",
    "mooncake_",
    "nixl_",
    "simple_kv_offload_",
    "spec_decode_",
    "websocket_",
)


def _family_root(name: str) -> str:
    """A ``vllm:`` sample name without namespace and without the endings that a type adds."""
    root = name.removeprefix("vllm:")
    for suffix in ("_bucket", "_count", "_sum"):
        if root.endswith(suffix):
            root = root.removesuffix(suffix)
            break
    return root.removesuffix("_total")


_USED_FAMILIES = frozenset(
    _family_root(alias) for family in FAMILIES for alias in family.aliases if alias.startswith("vllm:")
)


def is_known_family(sample_name: str) -> bool:
    """Whether a ``vllm:`` sample belongs to a family that some version from 0.24 to 0.32 has."""
    root = _family_root(sample_name)
    return root in _USED_FAMILIES or root in _OTHER_FAMILIES or root.startswith(_OTHER_PREFIXES)


def canonical_help(name: str) -> str | None:
    """The documented meaning of a canonical name, or ``None`` when there is no such name."""
    if name in DERIVED:
        return DERIVED[name]
    for family in FAMILIES:
        if family.name == name:
            return family.help
    return None
