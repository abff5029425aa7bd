"""When each failure type has happened, and when it is over, so that an outcome is decided without a person.

A definition asks one question of the picture of a server: does it fail in this way now? ``None`` is "that cannot be
told": a metric is missing, or too little was seen. What somebody asked for (a pause, a shutdown, a restart) is no
failure, and neither is what the host does to a server that is well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vllm_monitor.picture import Snapshot
from vllm_monitor.records import Condition

__all__ = ["DEFINITIONS", "Facts", "FailureDefinition"]

KV_FULL_RATIO = 0.98
"""A cache this full gives no block to a request that needs one."""
QUEUE_WAITING = 10.0
ERRORS_PER_SECOND = 0.2
ERROR_SHARE = 0.1
MEMORY_LEFT_RATIO = 0.03
FD_SHARE = 0.95
SLOWDOWN_RATIO = 1.5

_MEANT = (Condition.PAUSED, Condition.STOPPED, Condition.STARTING)
_GONE = (
    Condition.ENGINE_DEAD,
    Condition.WORKER_DEAD,
    Condition.API_DEAD,
    Condition.UNREACHABLE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a definition may ask beside the picture.

    Args:
        ttft_objective_seconds: Longest time to first token that is still good.
        inter_token_objective_seconds: Longest time between two tokens that is still good.
        failed_while_starting: The newest start of the server ended before it served; ``FailureWatch`` sees to it.
        killed_for_memory: The API server died while its memory grew; likewise.
        memory_limit_bytes: Most memory the API server can have; ``None`` when unknown.
        slowdown_ratio: Time between tokens against what is usual at this load; ``None`` when unknown.
    """

    ttft_objective_seconds: float = 2.0
    inter_token_objective_seconds: float = 0.2
    failed_while_starting: bool = False
    killed_for_memory: bool = False
    memory_limit_bytes: float | None = None
    slowdown_ratio: float | None = None


Question = Callable[[Snapshot, Facts], bool | None]


@dataclass(frozen=True, slots=True)
class FailureDefinition:
    """One failure type.

    Args:
        failure_type: Its name.
        happened: When it has happened, in words; ``hold_seconds`` come on top.
        is_failing: Whether a server fails in this way now; ``None`` when that cannot be told.
        hold_seconds: How long it must be so before it counts; it began with the first moment of that.
        clear_seconds: How long it must not be so before it is over.
        words: Says with numbers what is the matter while it fails; by default the sentence of the picture.
        is_death: Once it has happened it goes on for as long as nothing answers: a watch that begins anew sees no
            process that could tell who died.
    """

    failure_type: str
    happened: str
    is_failing: Question
    hold_seconds: float = 0.0
    clear_seconds: float = 5.0
    words: Callable[[Snapshot, Facts], str] = lambda snapshot, _facts: snapshot.reason
    is_death: bool = False


def _is(*conditions: Condition) -> Question:
    def is_failing(snapshot: Snapshot, facts: Facts) -> bool | None:
        if snapshot.condition is Condition.UNKNOWN:
            return None
        return snapshot.condition in conditions and not facts.failed_while_starting

    return is_failing


def _of_figures(
    decide: Callable[[Mapping[str, float], Facts], bool | None], *, excused: tuple[Condition, ...] = ()
) -> Question:
    """A question about figures of a server that answers and is meant to work."""

    def is_failing(snapshot: Snapshot, facts: Facts) -> bool | None:
        if snapshot.condition in (*_MEANT, *_GONE, *excused):
            return False  # what is not there does not fail in this way
        return decide(snapshot.values, facts)

    return is_failing


def _kv_exhausted(values: Mapping[str, float], _facts: Facts) -> bool | None:
    used, waiting = values.get("kv_cache_usage_ratio"), values.get("requests_waiting")
    if used is None or waiting is None:
        return None
    preempted = values.get("preemptions_per_second", 0.0) > 0.0
    return waiting > 0.0 and (used >= KV_FULL_RATIO or (used > 0.9 and preempted))


def _queue_saturated(values: Mapping[str, float], _facts: Facts) -> bool | None:
    waiting, growth = values.get("requests_waiting"), values.get("requests_waiting_growth_per_second")
    if waiting is None:
        return None
    queue = values.get("request_queue_time_p50_seconds", 0.0)
    return waiting >= QUEUE_WAITING and ((growth or 0.0) > 0.0 or queue > 1.0)


def _latency_breached(values: Mapping[str, float], facts: Facts) -> bool | None:
    first, between = values.get("time_to_first_token_p95_seconds"), values.get("inter_token_latency_p95_seconds")
    running = values.get("requests_running")
    if running is None or (running > 0.0 and first is None and between is None):
        return None
    if running <= 0.0:
        return False
    return (first or 0.0) > facts.ttft_objective_seconds or (between or 0.0) > facts.inter_token_objective_seconds


def _errors_surge(values: Mapping[str, float], _facts: Facts) -> bool | None:
    known = False
    for errors, all_of_them in (
        ("http_server_errors_per_second", "http_requests_per_second"),
        ("requests_failed_per_second", "requests_finished_per_second"),
    ):
        failed = values.get(errors)
        if failed is not None:
            known = True
            if failed > ERRORS_PER_SECOND and failed > ERROR_SHARE * values.get(all_of_them, 0.0):
                return True
    return False if known else None


def _memory_exhausted(values: Mapping[str, float], facts: Facts) -> bool | None:
    used, left = values.get("api_resident_memory_bytes"), values.get("host_memory_available_bytes")
    if used is not None and facts.memory_limit_bytes is not None:
        return used >= (1.0 - MEMORY_LEFT_RATIO) * facts.memory_limit_bytes
    if used is None:
        return None
    if left is None:
        return False  # a server elsewhere, without a known limit: only its death can tell
    return left <= MEMORY_LEFT_RATIO * (used + left)


def _fds_exhausted(values: Mapping[str, float], _facts: Facts) -> bool | None:
    used, most = values.get("api_open_fds"), values.get("api_max_fds")
    return None if used is None or not most else used >= FD_SHARE * most


def _degraded(values: Mapping[str, float], facts: Facts) -> bool | None:
    running = values.get("requests_running")
    if running is None or (running > 0.0 and facts.slowdown_ratio is None):
        return None
    return running > 0.0 and (facts.slowdown_ratio or 0.0) > SLOWDOWN_RATIO


def _cache_words(snapshot: Snapshot, _facts: Facts) -> str:
    used, waiting, preempted = _figures(snapshot, "kv_cache_usage_ratio", "requests_waiting", "preemptions_per_second")
    more = f", {preempted:.1f} are preempted each second" if preempted > 0 else ""
    return f"the KV cache is {100 * used:.0f} % full and {waiting:.0f} requests wait{more}"


def _queue_words(snapshot: Snapshot, _facts: Facts) -> str:
    waiting, growth, queue = _figures(
        snapshot, "requests_waiting", "requests_waiting_growth_per_second", "request_queue_time_p50_seconds"
    )
    more = f", {growth:.1f} more each second" if growth > 0 else ""
    more += f", half of them for over {queue:.1f} s" if queue > 1.0 else ""
    return f"{waiting:.0f} requests wait{more}"


def _latency_words(snapshot: Snapshot, facts: Facts) -> str:
    first, between = _figures(snapshot, "time_to_first_token_p95_seconds", "inter_token_latency_p95_seconds")
    words = []
    if first > facts.ttft_objective_seconds:
        words.append(f"to the first token is {first:.1f} s, {facts.ttft_objective_seconds:g} s would be good")
    if between > facts.inter_token_objective_seconds:
        words.append(f"between tokens is {between:.2f} s, {facts.inter_token_objective_seconds:g} s would be good")
    return "; ".join(f"the 95th percentile of time {one}" for one in words) or snapshot.reason


def _error_words(snapshot: Snapshot, _facts: Facts) -> str:
    answers, failed, finished = _figures(
        snapshot, "http_server_errors_per_second", "requests_failed_per_second", "requests_finished_per_second"
    )
    if answers > failed:
        return f"{answers:.1f} answers each second have a status of 500 or above"
    return f"{failed:.1f} of {failed + finished:.1f} requests each second end in an error or abort"


def _memory_words(snapshot: Snapshot, facts: Facts) -> str:
    used, left = _figures(snapshot, "api_resident_memory_bytes", "host_memory_available_bytes")
    if facts.killed_for_memory:
        return f"it died while its memory grew; it had {used / 1e6:.0f} MB when last seen" if used else snapshot.reason
    if facts.memory_limit_bytes is not None:
        return f"the API server has {used / 1e6:.0f} of {facts.memory_limit_bytes / 1e6:.0f} MB of memory"
    return f"the API server has {used / 1e6:.0f} MB of memory, and its host {left / 1e6:.0f} MB left"


def _fd_words(snapshot: Snapshot, _facts: Facts) -> str:
    used, most = _figures(snapshot, "api_open_fds", "api_max_fds")
    return f"{used:.0f} of {most:.0f} file descriptors of the API server are open"


def _slow_words(_snapshot: Snapshot, facts: Facts) -> str:
    return f"tokens take {facts.slowdown_ratio or 0.0:.1f} times as long as is usual at this load"


def _figures(snapshot: Snapshot, *names: str) -> list[float]:
    """Figures of the picture; 0 for one that is not known."""
    return [snapshot.values.get(name, 0.0) for name in names]


_has_no_memory = _of_figures(_memory_exhausted)


def _out_of_memory(snapshot: Snapshot, facts: Facts) -> bool | None:
    return True if facts.killed_for_memory else _has_no_memory(snapshot, facts)


def _start_failed(_snapshot: Snapshot, facts: Facts) -> bool | None:
    return facts.failed_while_starting


DEFINITIONS: tuple[FailureDefinition, ...] = (
    FailureDefinition("engine_stall", "the condition is `stalled`", _is(Condition.STALLED)),
    FailureDefinition("engine_death", "the condition is `engine_dead`", _is(Condition.ENGINE_DEAD), is_death=True),
    FailureDefinition("worker_death", "the condition is `worker_dead`", _is(Condition.WORKER_DEAD), is_death=True),
    FailureDefinition("api_death", "the condition is `api_dead`", _is(Condition.API_DEAD), is_death=True),
    FailureDefinition("api_frozen", "the condition is `api_frozen`", _is(Condition.API_FROZEN)),
    FailureDefinition(
        "kv_exhaustion",
        "requests wait, and the KV cache is 98 % full, or 90 % and requests are preempted",
        _of_figures(_kv_exhausted),
        hold_seconds=5.0,
        clear_seconds=10.0,
        words=_cache_words,
    ),
    FailureDefinition(
        "queue_saturation",
        "ten requests wait, and there are more and more of them or half of them wait for more than a second",
        _of_figures(_queue_saturated),
        hold_seconds=10.0,
        clear_seconds=10.0,
        words=_queue_words,
    ),
    FailureDefinition(
        "latency_breach",
        "requests run, the 95th percentile of time to first token or between tokens is over its objective, and the "
        "host is not the cause",
        _of_figures(_latency_breached, excused=(Condition.STARVED,)),
        hold_seconds=15.0,
        clear_seconds=15.0,
        words=_latency_words,
    ),
    FailureDefinition(
        "error_surge",
        "a tenth of the answers, and one in five seconds, is a status of 500 and above, or ends in an error or abort",
        _of_figures(_errors_surge),
        hold_seconds=5.0,
        clear_seconds=15.0,
        words=_error_words,
    ),
    FailureDefinition(
        "memory_exhaustion",
        "3 % are left of the memory that the API server can have (its limit, else what the host has), or it died while "
        "its memory had been growing without a fall for a minute and by a fifth",
        _out_of_memory,
        hold_seconds=2.0,
        clear_seconds=10.0,
        words=_memory_words,
    ),
    FailureDefinition(
        "fd_exhaustion",
        "95 % of the file descriptors of the API server are open",
        _of_figures(_fds_exhausted),
        hold_seconds=2.0,
        clear_seconds=10.0,
        words=_fd_words,
    ),
    FailureDefinition("startup_failure", "a start ended in an error state before the server served", _start_failed),
    FailureDefinition(
        "silent_degradation",
        "requests run, tokens take half as long again as is usual at this load; neither host nor queue is the cause",
        _of_figures(_degraded, excused=(Condition.STARVED, Condition.SATURATED)),
        hold_seconds=60.0,
        clear_seconds=60.0,
        words=_slow_words,
    ),
)
"""Every failure type of the package, in the order of ``FAILURE_TYPES``."""
