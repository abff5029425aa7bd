"""What speaks for a failure, in words with numbers, and what may help against it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from vllm_monitor.predictive_failure_detection.detectors.heartbeat_gaps import age_on_page
from vllm_monitor.predictive_failure_detection.features import Features
from vllm_monitor.records import LifecycleState, PredictionConfidence

__all__ = ["confidence_of", "factors", "mitigations_for", "state_after"]

MOST_FACTORS = 5
LEAST_SHARE = 0.06
"""What adds less than this share of all that speaks for it is left out."""
LEAST_KV_RATIO = 0.5
LEAST_OBJECTIVE_SHARE = 0.5
LEAST_FDS_SHARE = 0.5
"""What is far from its limit does not speak for a failure, whatever it adds."""

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


def factors(failure_type: str, features: Features, contributions: Mapping[str, float]) -> list[str]:
    """What speaks for a failure: what it is about first, then the strongest of the rest.

    What has nothing to do with it, as memory with a full cache, is left out however strong: hazards are learned from
    few servers, and lean on whatever went along with failures there.

    Args:
        failure_type: What.
        features: The look.
        contributions: Detector output to how much it adds to the logarithm of the odds.
    """
    principal = [words for phrase in _PRINCIPAL.get(failure_type, ()) if (words := phrase(features))]
    by_subject: dict[str, float] = {}
    for output, worth in contributions.items():
        if worth > 0:
            subject = next((name for name in _SUBJECTS if output.startswith(name)), "")
            phrase = _SUBJECTS.get(subject)
            if phrase is None or failure_type not in _ELSEWHERE.get(subject, (failure_type,)):
                continue
            words = phrase(features)
            if words and words not in principal:
                by_subject[words] = by_subject.get(words, 0.0) + worth
    least = LEAST_SHARE * sum(by_subject.values())
    ranked = sorted(by_subject, key=lambda words: -by_subject[words])
    return (principal + [words for words in ranked if by_subject[words] >= least])[:MOST_FACTORS]


Phrase = Callable[[Features], str]


def _cache(features: Features) -> str:
    level = features.value("kv_cache_usage_ratio")
    heading = _heading(features, "kv_cache_usage_ratio", 0.98, "full")
    if not (level >= LEAST_KV_RATIO or heading):
        return ""
    return f"the KV cache is {100 * level:.0f} % full{heading}"


def _queue(features: Features) -> str:
    waiting = features.value("requests_waiting")
    growth = max(features.value("requests_waiting_growth_per_second", 0.0), features.rate("requests_waiting"))
    if not waiting >= 1.0:
        return ""
    grows = f", {growth:.1f} more each second" if growth > 0.05 else ""
    return f"{waiting:.0f} requests wait{grows}"


def _batch(features: Features) -> str:
    running = features.value("requests_running")
    return f"{running:.0f} requests run{_usually(features, 'requests_running')}" if running >= 1.0 else ""


def _arrivals(features: Features) -> str:
    rate = features.value("prompt_tokens_per_second")
    unusual = _usually(features, "prompt_tokens_per_second")
    return f"{rate:.0f} prompt tokens are taken in each second{unusual}" if rate >= 1.0 else ""


def _first_token(features: Features) -> str:
    value = features.value("time_to_first_token_p95_seconds")
    objective = features.facts.get("ttft_objective_seconds", 2.0)
    words = f"the 95th percentile of time to first token is {value:.1f} s of {objective:g} s"
    return words if value >= LEAST_OBJECTIVE_SHARE * objective else ""


def _between(features: Features) -> str:
    value = features.value("inter_token_latency_p95_seconds")
    objective = features.facts.get("inter_token_objective_seconds", 0.2)
    words = f"the 95th percentile of time between tokens is {1000 * value:.0f} ms of {1000 * objective:.0f} ms"
    return words if value >= LEAST_OBJECTIVE_SHARE * objective else ""


def _memory(features: Features) -> str:
    used = features.value("api_resident_memory_bytes")
    if not math.isfinite(used):
        return ""
    growth = max(
        features.value("api_resident_memory_growth_bytes_per_second", 0.0), features.rate("api_resident_memory_bytes")
    )
    since = features.value("api_resident_memory_growth_seconds", 0.0)
    grows = f", {growth / 1e6:.1f} MB more each second for {since:.0f} s" if growth > 1e5 else ""
    return f"the API server has {used / 1e6:.0f} MB of memory{grows}"


def _descriptors(features: Features) -> str:
    used, most = features.value("api_open_fds"), features.value("api_max_fds")
    return f"{used:.0f} of {most:.0f} file descriptors are open" if used >= LEAST_FDS_SHARE * most else ""


def _stutter(features: Features) -> str:
    longest = features.value("inter_token_latency_longest_seconds", 0.0)
    if longest >= 0.5:
        return f"the engine stuttered: up to {longest:.1f} s between two tokens in the last minute"
    age = age_on_page(features)
    return f"the newest sign of progress is {age:.1f} s old" if age >= 1.0 else ""


def _usually(features: Features, name: str) -> str:
    unusual = features.unusual(name)
    return f", {unusual:.1f} standard deviations above the usual" if unusual >= 2.0 else ""


def _heading(features: Features, name: str, limit: float, word: str) -> str:
    slope, level = features.rate(name), features.value(name)
    if slope <= 0 or not level < limit:
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

_PRINCIPAL: Mapping[str, tuple[Phrase, ...]] = {
    "kv_exhaustion": (_cache, _queue),
    "queue_saturation": (_queue,),
    "latency_breach": (_queue, _first_token, _between),
    "memory_exhaustion": (_memory,),
    "fd_exhaustion": (_descriptors,),
    "engine_stall": (_stutter,),
}
"""What a failure is about: said first, as far as it holds."""
_FROZEN = ("api_frozen", "engine_stall")
_ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    "memory": ("memory_exhaustion", "api_death"),
    "api_resident": ("memory_exhaustion", "api_death"),
    "fds": ("fd_exhaustion", "api_frozen"),
    "api_open_fds": ("fd_exhaustion", "api_frozen"),
    "established": ("fd_exhaustion", "api_frozen"),
    "scrape": _FROZEN,
    "accept_queue": _FROZEN,
    "host_pressed": ("latency_breach", "silent_degradation", *_FROZEN),
}
"""Subjects that say something of these failures alone."""
