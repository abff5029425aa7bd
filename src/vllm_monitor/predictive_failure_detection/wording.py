"""What speaks for a failure, in words with numbers, and what may help against it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from vllm_monitor.predictive_failure_detection.features import Features
from vllm_monitor.records import LifecycleState, PredictionConfidence

__all__ = ["confidence_of", "factors", "mitigations_for", "state_after"]

MOST_FACTORS = 5
LEAST_SHARE = 0.06
"""What adds less than this share of all that speaks for it is left out."""

_MITIGATIONS: Mapping[str, tuple[str, ...]] = {
    "engine_stall": ("resume_engine", "restart_server"),
    "engine_death": ("drain_traffic", "restart_server"),
    "worker_death": ("drain_traffic", "restart_server"),
    "api_death": ("drain_traffic", "restart_server"),
    "api_frozen": ("limit_admission", "restart_server"),
    "kv_exhaustion": ("limit_admission", "cap_output_tokens", "abort_longest_requests"),
    "queue_saturation": ("limit_admission", "drain_traffic"),
    "latency_breach": ("limit_admission", "drain_traffic"),
    "error_surge": ("drain_traffic", "restart_server"),
    "memory_exhaustion": ("drain_traffic", "restart_server"),
    "fd_exhaustion": ("limit_admission", "restart_server"),
    "startup_failure": ("restart_server",),
    "silent_degradation": ("drain_traffic", "restart_server"),
}
_STATES: Mapping[str, LifecycleState] = {
    "engine_stall": LifecycleState.ERROR,
    "engine_death": LifecycleState.CRITICAL_ERROR,
    "worker_death": LifecycleState.CRITICAL_ERROR,
    "api_death": LifecycleState.CRITICAL_ERROR,
    "api_frozen": LifecycleState.ERROR,
    "memory_exhaustion": LifecycleState.CRITICAL_ERROR,
    "startup_failure": LifecycleState.CRITICAL_ERROR,
}


def mitigations_for(failure_type: str) -> list[str]:
    """Names of strategies, best first."""
    return list(_MITIGATIONS.get(failure_type, ()))


def state_after(failure_type: str) -> LifecycleState:
    """The state that the server is expected to enter."""
    return _STATES.get(failure_type, LifecycleState.DEGRADED)


def confidence_of(probability: float) -> PredictionConfidence:
    """A probability in a word."""
    for least, word in (
        (0.9, PredictionConfidence.VERY_HIGH),
        (0.75, PredictionConfidence.HIGH),
        (0.5, PredictionConfidence.MEDIUM),
    ):
        if probability >= least:
            return word
    return PredictionConfidence.LOW


def factors(features: Features, contributions: Mapping[str, float]) -> list[str]:
    """What speaks for a failure, strongest first.

    Args:
        features: The look.
        contributions: Detector output to how much it adds to the logarithm of the odds.
    """
    by_subject: dict[str, float] = {}
    for output, worth in contributions.items():
        if worth > 0:
            subject = next((name for name in _SUBJECTS if output.startswith(name)), "")
            words = _SUBJECTS[subject](features) if subject else ""
            if words:
                by_subject[words] = by_subject.get(words, 0.0) + worth
    least = LEAST_SHARE * sum(by_subject.values())
    ranked = sorted(by_subject, key=lambda words: -by_subject[words])
    return [words for words in ranked if by_subject[words] >= least][:MOST_FACTORS]


Phrase = Callable[[Features], str]


def _cache(features: Features) -> str:
    level = features.value("kv_cache_usage_ratio")
    if not math.isfinite(level):
        return ""
    return f"the KV cache is {100 * level:.0f} % full{_heading(features, 'kv_cache_usage_ratio', 0.98, 'full')}"


def _queue(features: Features) -> str:
    waiting = features.value("requests_waiting")
    growth = features.value("requests_waiting_growth_per_second", 0.0)
    if not math.isfinite(waiting):
        return ""
    grows = f", {growth:.1f} more each second" if growth > 0.05 else ""
    return f"{waiting:.0f} requests wait{grows}"


def _batch(features: Features) -> str:
    running = features.value("requests_running")
    return f"{running:.0f} requests run{_usually(features, 'requests_running')}" if math.isfinite(running) else ""


def _arrivals(features: Features) -> str:
    rate = features.value("http_requests_per_second")
    if math.isfinite(rate):
        return f"{rate:.1f} requests arrive each second{_usually(features, 'http_requests_per_second')}"
    rate = features.value("prompt_tokens_per_second")
    return f"{rate:.0f} prompt tokens come each second" if math.isfinite(rate) else ""


def _first_token(features: Features) -> str:
    value = features.value("time_to_first_token_p95_seconds")
    objective = features.facts.get("ttft_objective_seconds", 2.0)
    return f"the 95th percentile of time to first token is {value:.2f} s of {objective:g} s" if value == value else ""


def _between(features: Features) -> str:
    value = features.value("inter_token_latency_p95_seconds")
    objective = features.facts.get("inter_token_objective_seconds", 0.2)
    words = f"the 95th percentile of time between tokens is {1000 * value:.0f} ms of {1000 * objective:.0f} ms"
    return words if value == value else ""


def _memory(features: Features) -> str:
    used = features.value("api_resident_memory_bytes")
    if not math.isfinite(used):
        return ""
    growth = features.value("api_resident_memory_growth_bytes_per_second", 0.0)
    since = features.value("api_resident_memory_growth_seconds", 0.0)
    grows = f", {growth / 1e6:.1f} MB more each second for {since:.0f} s" if growth > 1e5 else ""
    return f"the API server has {used / 1e6:.0f} MB of memory{grows}"


def _descriptors(features: Features) -> str:
    used, most = features.value("api_open_fds"), features.value("api_max_fds")
    return f"{used:.0f} of {most:.0f} file descriptors are open" if used == used and most == most else ""


def _stutter(features: Features) -> str:
    longest = features.value("inter_token_latency_longest_seconds", 0.0)
    if longest >= 0.5:
        return f"the engine stuttered: up to {longest:.1f} s between two tokens in the last minute"
    age = features.value("progress_age_seconds", 0.0)
    return f"the newest sign of progress is {age:.1f} s old" if age >= 1.0 else ""


def _usually(features: Features, name: str) -> str:
    unusual = features.unusual(name)
    return f", {unusual:.1f} standard deviations above the usual" if unusual >= 2.0 else ""


def _heading(features: Features, name: str, limit: float, word: str) -> str:
    slope, level = features.slope(name), features.value(name)
    if slope <= 0 or level >= limit:
        return ""
    seconds = (limit - level) / slope
    return f", {word} in {seconds:.0f} s at this rate" if seconds < 900.0 else ""


def _simply(words: str) -> Phrase:
    return lambda _features: words


def _figure(name: str, words: str, unit: str, factor: float = 1.0, digits: int = 0) -> Phrase:
    def phrase(features: Features) -> str:
        value = features.value(name)
        return f"{words} {value * factor:.{digits}f}{unit}" if math.isfinite(value) else ""

    return phrase


_SUBJECTS: Mapping[str, Phrase] = {
    "kv": _cache,
    "waiting": _queue,
    "is_waiting": _queue,
    "requests_waiting": _queue,
    "request_queue": _figure("request_queue_time_p95_seconds", "requests queue up to", " s", 1.0, 1),
    "queueing": _figure("request_queue_time_p95_seconds", "requests queue up to", " s", 1.0, 1),
    "batch_share": _batch,
    "requests_running": _batch,
    "tokens_share": _figure("generation_tokens_per_second", "tokens per second:", ""),
    "generation_tokens": _figure("generation_tokens_per_second", "tokens per second:", ""),
    "requests_finished": _figure("requests_finished_per_second", "requests finish at", "/s", 1.0, 1),
    "prompt": _arrivals,
    "http_requests": _arrivals,
    "preempting": _figure("preemptions_per_second", "preemptions per second:", "", 1.0, 1),
    "first_token": _first_token,
    "time_to_first_token": _first_token,
    "request_prefill": _first_token,
    "inter_token": _between,
    "slowdown": _between,
    "engine_steps": _figure("engine_steps_per_second", "engine steps per second:", ""),
    "memory": _memory,
    "api_resident": _memory,
    "fds": _descriptors,
    "api_open_fds": _descriptors,
    "stutter": _stutter,
    "gap_length": _stutter,
    "progress_late": _stutter,
    "failing_answers": _figure("http_server_errors_per_second", "answers of status 5xx:", "/s", 1.0, 1),
    "refusing": _figure("admission_rejections_per_second", "requests refused:", "/s", 1.0, 1),
    "scrape": _figure("scrape_duration_seconds", "the page of metrics takes", " s", 1.0, 2),
    "host_pressed": _simply("the host is short of CPU or memory"),
    "established": _figure("established_connections", "connections:", ""),
    "accept_queue": _figure("listen_queue", "connections that wait to be accepted:", ""),
    "all_signals": _simply("the figures together are unlike any of the last hours"),
    "between_tokens": _between,
    "unlike_the_past": _simply("the figures together are unlike any of the last hours"),
    **{kind: _simply(f"it looks as it did before an earlier {kind}") for kind in _MITIGATIONS},
}
