"""The guardrails that come with the package: what goes wrong with vLLM servers, and what to do about it.

Limits are those at which a server of any size is in trouble; what depends on the site (objectives, memory) is taken
from settings or from the server itself. ``docs/guardrails.md`` shows them all with their runbooks.
"""

from __future__ import annotations

from vllm_monitor.records import GuardrailPolicy

__all__ = ["builtin_policies"]


_EXPLAINED = (
    "host_starvation",
    "kv_cache_exhausted",
    "saturated",
    "engine_stall",
    "engine_dead",
    "worker_dead",
    "api_dead",
)
"""What explains that requests are slow, or that clients go away."""


def builtin_policies(
    *, ttft_objective_seconds: float = 2.0, inter_token_objective_seconds: float = 0.2
) -> list[GuardrailPolicy]:
    """All of them.

    Args:
        ttft_objective_seconds: Longest time to first token that is still good.
        inter_token_objective_seconds: Longest time between two tokens that is still good.
    """
    return [
        _policy(
            "engine_stall",
            "Work waits, and the engine makes no progress",
            "condition == 'stalled' for 2s",
            "critical",
            intervention="restart_engine",
            runbook=(
                "Neither tokens nor engine steps advance although requests wait; /health goes on saying 200. Look "
                "at the process state (`vllm-monitor status`): a stopped process (T) goes on after SIGCONT. "
                "Otherwise take a stack dump of engine and workers (py-spy dump), then kill the engine and restart "
                "the server. Do not send /pause or /abort to a hung engine: they take effect later, when nobody "
                "expects it."
            ),
        ),
        _policy(
            "engine_dead",
            "The engine process has died",
            "condition == 'engine_dead'",
            "critical",
            intervention="restart_server",
            runbook=(
                "The API server follows within seconds, with exit code 0: only `restart: always` brings it back. "
                "Find the first ERROR of EngineCore or a worker above `EngineDeadError` in the log. Kill workers "
                "that were left behind before the restart, or their GPU memory is missing."
            ),
        ),
        _policy(
            "worker_dead",
            "A worker process has died",
            "condition == 'worker_dead'",
            "critical",
            intervention="restart_server",
            runbook=(
                "Its exit code tells why: -9 is the OOM killer or a kill (dmesg), -6 often NCCL, -11 a crash in "
                "native code. The engine and the API server end by themselves within seconds; restart the server."
            ),
        ),
        _policy(
            "api_dead",
            "The API server has gone without a clean shutdown",
            "condition == 'api_dead'",
            "critical",
            intervention="restart_server",
            runbook=(
                "See the end of its log and dmesg; kill engine and workers that were left behind; restart the server."
            ),
        ),
        _policy(
            "api_frozen",
            "The API server is there and answers nobody",
            "condition == 'api_frozen' for 2s",
            "critical",
            intervention="restart_server",
            runbook=(
                "Connections pile up in the accept queue. A stopped process (state T) goes on after SIGCONT. Else "
                "take a stack dump (py-spy dump): a plug-in or middleware that blocks the event loop does this. "
                "Take the server out of rotation, then restart it."
            ),
        ),
        _policy(
            "server_unreachable",
            "The server does not answer, and its processes cannot be seen",
            "condition == 'unreachable' for 10s",
            "critical",
            runbook="Network, name, port, or the server is gone: look at its host. Nothing can be told from here.",
        ),
        _policy(
            "server_stopped",
            "The server was shut down on request",
            "condition == 'stopped'",
            "warning",
            runbook=(
                "Somebody asked for it. While it drains /health says 200 and new requests get an error: take it out "
                "of rotation first the next time."
            ),
        ),
        _policy(
            "crash_loop",
            "The server fails again and again",
            "failures_in_a_row >= 3",
            "critical",
            runbook=(
                "Starting it once more is no cure. `vllm-monitor lifecycle` shows the signature of each crash; "
                "compare arguments and versions with the last start that went well."
            ),
        ),
        _policy(
            "startup_slow",
            "A phase of the start takes much longer than it usually does",
            "startup_is_slow || (startup_phase != '' && startup_phase_seconds > 1200.0)",
            "warning",
            runbook=(
                "Which phase it is says where to look: loading_weights is storage or network, workers_spawned the "
                "host or NCCL, warming_up compilation (a cold cache of kernels). `vllm-monitor lifecycle` shows "
                "what it usually takes."
            ),
        ),
        _policy(
            "kv_cache_exhausted",
            "The KV cache is full and requests wait for it",
            "kv_cache_usage_ratio > 0.9 && requests_waiting > 0.0 for 3s",
            "critical",
            intervention="limit_admission",
            runbook=(
                "More comes in than the cache holds; it stays so for a while after the load has gone. Limit "
                "admission (max_num_queued_reqs) or the output length; aborting the few longest requests helps, "
                "aborting all does not. Lasting: more GPU memory for the cache, shorter max_model_len, another "
                "replica."
            ),
        ),
        _policy(
            "preemption_storm",
            "Requests are thrown out of the batch and computed again",
            "preemptions_per_second > 0.5 && requests_waiting > 0.0 for 5s",
            "warning",
            intervention="limit_admission",
            runbook=(
                "The KV cache is too small for the batch: every preemption is work done twice. As "
                "kv_cache_exhausted; or lower max_num_seqs."
            ),
        ),
        _policy(
            "queue_growth",
            "Requests queue faster than they are served",
            "requests_waiting >= 10.0 && requests_waiting_growth_per_second > 0.2 for 3s",
            "warning",
            intervention="limit_admission",
            runbook=(
                "Clients that time out and try again make it worse. Shed load at the door (max_num_queued_reqs with "
                "503 and Retry-After), or add replicas. Do not abort what runs."
            ),
        ),
        _policy(
            "saturated",
            "More comes in than goes out",
            "condition == 'saturated' for 10s",
            "critical",
            intervention="limit_admission",
            runbook=(
                "As queue_growth. When /health times out as well, the API server itself is busy: take it out of "
                "rotation for a while."
            ),
        ),
        _policy(
            "ttft_over_objective",
            "Clients wait too long for the first token",
            f"time_to_first_token_p95_seconds > {ttft_objective_seconds!r} && requests_running > 0.0 for 15s",
            "warning",
            inhibited_by=_EXPLAINED,
            runbook=(
                "Long queue (request_queue_time_p95_seconds) means too much load; else look at prompt lengths and "
                "the prefix cache."
            ),
        ),
        _policy(
            "inter_token_over_objective",
            "Tokens come too slowly",
            f"inter_token_latency_p95_seconds > {inter_token_objective_seconds!r} && requests_running > 0.0 for 15s",
            "warning",
            inhibited_by=_EXPLAINED,
            runbook=(
                "A large batch, long prompts between (chunked prefill), GPU clocks (throttling), or a host that is "
                "short of CPU."
            ),
        ),
        _policy(
            "server_errors",
            "The server answers with errors",
            "http_server_errors_per_second > 0.5"
            " && http_server_errors_per_second > 0.1 * http_requests_per_second for 3s",
            "critical",
            inhibited_by=("server_stopped", "admission_rejections"),
            runbook=(
                "See its log. While it shuts down every new request gets a 500. Errors within a stream are 200s and "
                "are not counted here."
            ),
        ),
        _policy(
            "requests_aborted",
            "The engine ends requests with an error or an abort",
            "requests_failed_per_second > 0.2"
            " && requests_failed_per_second > 0.1 * requests_finished_per_second for 5s",
            "warning",
            runbook=(
                "Clients see an empty 200 as a success. Who called /pause?mode=abort, /abort_requests or /sleep? "
                "Else see the log."
            ),
        ),
        _policy(
            "admission_rejections",
            "Requests are refused at the door",
            "admission_rejections_per_second > 0.5 for 3s",
            "warning",
            runbook=(
                "The queue limit does what it is for. If it lasts: more replicas. Clients should honour Retry- After."
            ),
        ),
        _policy(
            "memory_growth",
            "The memory of the API server grows steadily",
            "api_resident_memory_growth_bytes_per_second > 5000000.0 && api_resident_memory_growth_seconds >= 10.0",
            "warning",
            intervention="rolling_restart",
            runbook=(
                "It will end with the OOM killer. How long is left is the memory that is available divided by the "
                "growth. Drain and restart it before; then look for the leak (plug-ins, middleware, multimodal "
                "caches)."
            ),
        ),
        _policy(
            "fd_exhaustion",
            "File descriptors run out",
            "api_open_fds > 0.8 * api_max_fds",
            "critical",
            runbook=(
                "accept() fails next. Raise `ulimit -n`; look for clients that open connections and never close them."
            ),
        ),
        _policy(
            "prefix_cache_collapse",
            "The prefix cache finds much less than it used to",
            "prefix_cache_hit_ratio_usual > 0.3 && prefix_cache_hit_ratio < 0.3 * prefix_cache_hit_ratio_usual"
            " && prompt_tokens_per_second > 100.0 for 60s",
            "warning",
            runbook="Prompts or routing changed (sessions no longer stick to a replica), or the cache was reset.",
        ),
        _policy(
            "host_starvation",
            "The host is the cause: the server gets too little CPU or memory",
            "condition == 'starved' for 2s",
            "info",
            keep_firing_seconds=60.0,
            runbook=(
                "Not a fault of vLLM: do not restart it. Find what else runs on the host (`vllm-monitor status`, "
                "top, PSI), move it, renice it or give the server CPUs of its own."
            ),
        ),
        _policy(
            "client_errors",
            "Clients send requests that are refused as invalid",
            "http_client_errors_per_second > 2.0"
            " && http_client_errors_per_second > 0.3 * http_requests_per_second for 5s",
            "info",
            runbook="Their mistake; vLLM logs each as ERROR all the same. Leave them out of the error budget.",
        ),
        _policy(
            "clients_disconnect",
            "Clients go away before they are answered",
            "requests_vanished_per_second > 2.0 for 5s",
            "info",
            inhibited_by=(*_EXPLAINED, "api_frozen"),
            runbook=(
                "vLLM counts no aborts of clients. Time-outs that are too short, or a client that gives up at once: "
                "limit its rate."
            ),
        ),
        _policy(
            "inside_silent",
            "Our part inside the server tells nothing any more",
            "inside_silent_seconds > 15.0 for 5s",
            "warning",
            inhibited_by=("api_frozen", "host_starvation"),
            runbook=(
                "The server serves, but nothing comes from inside it: stalls are told later, requests not at all. Look "
                "for `vllm-monitor` in its log, and whether its spool folder has room and belongs to its user. A "
                "server that was restarted without VLLMMON_ENABLED=1 looks the same for ten minutes."
            ),
        ),
        _policy(
            "server_paused",
            "The server has been paused for a long time",
            "condition == 'paused' for 10m",
            "warning",
            intervention="resume",
            runbook="Requests queue meanwhile. Somebody forgot /resume or /wake_up, or a /pause took effect late.",
        ),
    ]


def _policy(
    name: str,
    description: str,
    condition: str,
    severity: str,
    *,
    runbook: str,
    intervention: str | None = None,
    inhibited_by: tuple[str, ...] = (),
    keep_firing_seconds: float | None = None,
) -> GuardrailPolicy:
    metadata: dict[str, object] = {"built_in": True, "runbook": runbook}
    if inhibited_by:
        metadata["inhibited_by"] = list(inhibited_by)
    if keep_firing_seconds is not None:
        metadata["keep_firing_seconds"] = keep_firing_seconds
    return GuardrailPolicy(name, description, condition, intervention, severity, metadata=metadata)
