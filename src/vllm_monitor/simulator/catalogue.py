"""The metric families of a vLLM 0.32 server: names, types, labels and bucket boundaries, in page order."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_monitor.records import MetricKind

__all__ = ["BUCKETS", "FAMILIES", "HTTP_HANDLERS", "HTTP_REQUEST_ROWS", "Family", "Labels"]

Labels = tuple[tuple[str, str], ...]

_LENGTHS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
_STEP_TOKENS = (1.0, *(float(2**power) for power in range(3, 15)))
_TOKEN_TIMES = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_FIRST_TOKEN_TIMES = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_REQUEST_TIMES = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_HTTP_FINE_TIMES = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5),
    *(3.0, 3.5, 4.0, 4.5, 5.0, 7.5, 10.0, 30.0, 60.0),
)

BUCKETS: dict[str, tuple[float, ...]] = {
    "vllm:request_prompt_tokens": _LENGTHS,
    "vllm:request_generation_tokens": _LENGTHS,
    "vllm:iteration_tokens_total": _STEP_TOKENS,
    "vllm:request_max_num_generation_tokens": _LENGTHS,
    "vllm:request_params_n": (1.0, 2.0, 5.0, 10.0, 20.0),
    "vllm:request_params_max_tokens": _LENGTHS,
    "vllm:time_to_first_token_seconds": _FIRST_TOKEN_TIMES,
    "vllm:inter_token_latency_seconds": _TOKEN_TIMES,
    "vllm:request_time_per_output_token_seconds": _TOKEN_TIMES,
    "vllm:e2e_request_latency_seconds": _REQUEST_TIMES,
    "vllm:request_queue_time_seconds": _REQUEST_TIMES,
    "vllm:request_inference_time_seconds": _REQUEST_TIMES,
    "vllm:request_prefill_time_seconds": _REQUEST_TIMES,
    "vllm:request_decode_time_seconds": _REQUEST_TIMES,
    "vllm:request_num_preemptions": (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0),
    "vllm:request_prefill_kv_computed_tokens": _LENGTHS,
    "http_request_duration_highr_seconds": _HTTP_FINE_TIMES,
    "http_request_duration_seconds": (0.1, 0.5, 1.0),
}

HTTP_HANDLERS: tuple[tuple[str, str], ...] = (
    ("/v1/models", "GET"),
    ("/v1/completions", "POST"),
    ("/v1/chat/completions", "POST"),
)
HTTP_REQUEST_ROWS: tuple[tuple[str, str, str], ...] = (
    ("/v1/models", "GET", "2xx"),
    ("/v1/models", "GET", "4xx"),
    ("/v1/completions", "POST", "2xx"),
    ("/v1/completions", "POST", "4xx"),
    ("/v1/completions", "POST", "5xx"),
    ("/v1/chat/completions", "POST", "2xx"),
)
_HANDLERS: tuple[Labels, ...] = tuple((("handler", handler),) for handler, _ in HTTP_HANDLERS)
_HANDLERS_AND_METHODS: tuple[Labels, ...] = tuple(
    (("handler", handler), ("method", method)) for handler, method in HTTP_HANDLERS
)


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family.

    Args:
        name: Name of the family as its ``# TYPE`` line shows it (counters end in ``_total``).
        kind: Declared type.
        help_text: What it counts, in our words.
        rows: The label sets it is printed with, without ``engine``, ``model_name`` and ``le``.
        engine: Whether rows also carry ``engine="0"``.
        model: Whether rows also carry ``model_name``.
        created: Whether the page shows when each row came into being.
    """

    name: str
    kind: MetricKind
    help_text: str
    rows: tuple[Labels, ...] = ((),)
    engine: bool = True
    model: bool = True
    created: bool = True

    @property
    def created_name(self) -> str:
        """Name of the family that says when the rows came into being."""
        return (self.name.removesuffix("_total") if self.kind is MetricKind.COUNTER else self.name) + "_created"


def _by(label: str, *values: str) -> tuple[Labels, ...]:
    return tuple(((label, value),) for value in values)


def _counter(name: str, help_text: str, rows: tuple[Labels, ...] = ((),), *, engine: bool = True) -> Family:
    return Family(f"vllm:{name}_total", MetricKind.COUNTER, help_text, rows, engine=engine)


def _gauge(name: str, help_text: str, rows: tuple[Labels, ...] = ((),), *, model: bool = True) -> Family:
    return Family(f"vllm:{name}", MetricKind.GAUGE, help_text, rows, model=model, created=False)


def _histogram(name: str, help_text: str) -> Family:
    return Family(f"vllm:{name}", MetricKind.HISTOGRAM, help_text)


def _host(name: str, kind: MetricKind, help_text: str, rows: tuple[Labels, ...] = ((),)) -> Family:
    return Family(name, kind, help_text, rows, engine=False, model=False, created=False)


def _http(name: str, kind: MetricKind, help_text: str, rows: tuple[Labels, ...] = ((),)) -> Family:
    return Family(name, kind, help_text, rows, engine=False, model=False)


_GENERATIONS = _by("generation", "0", "1", "2")
_PYTHON: Labels = (
    ("implementation", "CPython"),
    ("major", "3"),
    ("minor", "12"),
    ("patchlevel", "0"),
    ("version", "3.12.0"),
)

FAMILIES: tuple[Family, ...] = (
    _host(
        "python_gc_objects_collected_total",
        MetricKind.COUNTER,
        "Objects freed by garbage collection",
        _GENERATIONS,
    ),
    _host(
        "python_gc_objects_uncollectable_total",
        MetricKind.COUNTER,
        "Objects that garbage collection could not free",
        _GENERATIONS,
    ),
    _host(
        "python_gc_collections_total",
        MetricKind.COUNTER,
        "Garbage collections of a generation",
        _GENERATIONS,
    ),
    _host("python_info", MetricKind.GAUGE, "The Python that runs the server", (_PYTHON,)),
    _host("process_virtual_memory_bytes", MetricKind.GAUGE, "Address space of the process in bytes"),
    _host("process_resident_memory_bytes", MetricKind.GAUGE, "Resident memory of the process in bytes"),
    _host("process_start_time_seconds", MetricKind.GAUGE, "Unix time at which the process began"),
    _host("process_cpu_seconds_total", MetricKind.COUNTER, "CPU time used by the process"),
    _host("process_open_fds", MetricKind.GAUGE, "File descriptors in use"),
    _host("process_max_fds", MetricKind.GAUGE, "File descriptors allowed"),
    _counter("estimated_flops_per_gpu", "Floating point operations of one GPU, as a model estimates them"),
    _counter("estimated_read_bytes_per_gpu", "Bytes that one GPU read from its memory, estimated"),
    _counter("estimated_write_bytes_per_gpu", "Bytes that one GPU wrote to its memory, estimated"),
    _gauge("num_requests_running", "Requests in the current batch"),
    _gauge("num_requests_waiting", "Requests that wait for a place in a batch"),
    _gauge(
        "num_requests_waiting_by_reason",
        "Waiting requests by what they wait for: capacity, or a passing obstacle",
        _by("reason", "capacity", "deferred"),
    ),
    _gauge(
        "engine_sleep_state",
        "1 for the state the engine is in: awake, weights moved away, or everything dropped",
        _by("sleep_state", "awake", "weights_offloaded", "discard_all"),
    ),
    _gauge("kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1"),
    _counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache"),
    _counter("prefix_cache_hits", "Prompt tokens found in the prefix cache"),
    _counter("external_prefix_cache_queries", "Prompt tokens looked up in caches of other instances"),
    _counter("external_prefix_cache_hits", "Prompt tokens found in caches of other instances"),
    _counter("mm_cache_queries", "Multi-modal items looked up in their cache"),
    _counter("mm_cache_hits", "Multi-modal items found in their cache"),
    _counter("num_preemptions", "Sequences thrown out of a batch for want of blocks"),
    _counter("prompt_tokens", "Prompt tokens of requests whose first token is out"),
    _counter(
        "prompt_tokens_by_source",
        "Prompt tokens by where their KV entries came from",
        _by("source", "local_compute", "local_cache_hit", "external_kv_transfer"),
    ),
    _counter("prompt_tokens_cached", "Prompt tokens that needed no computation"),
    _counter(
        "prompt_tokens_cached_by_source",
        "Prompt tokens that needed no computation, by the tier of cache that had them",
        _by("source", "device", "host", "p2p", "disk", "external_unspecified"),
    ),
    _counter("generation_tokens", "Tokens generated"),
    _counter(
        "request_success",
        "Requests that the engine finished, by why they ended",
        _by("finished_reason", "stop", "length", "abort", "error", "repetition"),
    ),
    _counter(
        "admission_rejections",
        "Requests turned away by a limit on the queue",
        _by("reason", "max_num_queued_reqs", "max_num_queued_tokens"),
        engine=False,
    ),
    _histogram("request_prompt_tokens", "Prompt tokens of finished requests"),
    _histogram("request_generation_tokens", "Generated tokens of finished requests"),
    _histogram("iteration_tokens_total", "Tokens handled in one step of the engine"),
    _histogram("request_max_num_generation_tokens", "Longest answer of finished requests, over its choices"),
    _histogram("request_params_n", "The parameter n of finished requests"),
    _histogram("request_params_max_tokens", "The parameter max_tokens of finished requests"),
    _histogram("time_to_first_token_seconds", "Seconds from arrival to the first token"),
    _histogram("inter_token_latency_seconds", "Seconds between two tokens of one request"),
    _histogram("request_time_per_output_token_seconds", "Mean seconds per token after the first, by request"),
    _histogram("e2e_request_latency_seconds", "Seconds from arrival to the end of the answer"),
    _histogram("request_queue_time_seconds", "Seconds spent waiting for a place in a batch"),
    _histogram("request_inference_time_seconds", "Seconds from the place in a batch to the last token"),
    _histogram("request_prefill_time_seconds", "Seconds from the place in a batch to the first token"),
    _histogram("request_decode_time_seconds", "Seconds from the first token to the last"),
    _histogram("request_num_preemptions", "How often a finished request was thrown out of a batch"),
    _histogram("request_prefill_kv_computed_tokens", "Prompt tokens of a request that were computed"),
    _gauge("cache_config_info", "Settings of the KV cache, as labels", model=False),
    _http(
        "http_requests_total",
        MetricKind.COUNTER,
        "HTTP requests by handler, method and class of status",
        tuple(
            (("handler", handler), ("method", method), ("status", status))
            for handler, method, status in HTTP_REQUEST_ROWS
        ),
    ),
    _http("http_request_size_bytes", MetricKind.SUMMARY, "Announced length of HTTP requests", _HANDLERS),
    _http("http_response_size_bytes", MetricKind.SUMMARY, "Announced length of HTTP responses", _HANDLERS),
    _http(
        "http_request_duration_highr_seconds",
        MetricKind.HISTOGRAM,
        "Duration of HTTP requests, finely divided, all handlers together",
    ),
    _http(
        "http_request_duration_seconds",
        MetricKind.HISTOGRAM,
        "Duration of HTTP requests by handler, coarsely divided",
        _HANDLERS_AND_METHODS,
    ),
)
