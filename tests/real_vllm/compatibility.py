"""What works of the part inside a server with one version of vLLM, seen on a real server of it.

What must work everywhere is asserted. What differs between versions is a row of the table in docs/inside.md, which is
kept in ``tests/data/compatibility.json``; with ``VLLMMON_UPDATE_COMPATIBILITY=1`` the row is written, not compared.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tests.real_vllm.clients import Answers, complete, completion, crowd, lever, refused, stream
from tests.waiting import wait_until

import vllm_env
from vllm_monitor.core import MonitorConfig, VLLMMonitor
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import RequestSummary
from vllm_monitor_engine.middleware import prompt_hash
from vllm_server import VllmServer

__all__ = ["TABLE", "Hooks", "check_row", "hooks_of", "observe", "plugin_server"]

TABLE = Path(__file__).parents[1] / "data" / "compatibility.json"
BUCKET = re.compile(r'^vllm:(\w+_seconds)_bucket\{.*le="([^"]+)".*\} (\S+)$', re.MULTILINE)
QUEUE_REJECTIONS = re.compile(
    r'^vllm:admission_rejections_total\{.*reason="max_num_queued_reqs".*\} (\S+)$', re.MULTILINE
)
PREFIX = "vllm_monitor_engine_"
HISTOGRAMS = (
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
)
COUNTERS = ("generation_tokens", "prompt_tokens", "prompt_tokens_cached", "prefix_cache_queries", "prefix_cache_hits")
COUNTERS_BESIDE = ("num_preemptions", "corrupted_requests")
GAUGES = ("num_requests_running", "num_requests_waiting", "num_requests_deferred", "kv_cache_usage_perc")
FIGURES = (
    "prompt_tokens",
    "output_tokens",
    "cached_tokens",
    "queue_seconds",
    "time_to_first_token_seconds",
    "inter_token_seconds",
    "duration_seconds",
    "preemptions",
)
PHASES = ("process_started", "engine_client", "engine_initialized", "application_built", "application_ready")
QUEUE_LIMIT = 4
LONG_TOKENS = 900
CROWD_TOKENS = 200
FINGERPRINT_LENGTH = 64

Row = dict[str, bool | str]

PROBE = """
import dataclasses, json
from vllm.config import SchedulerConfig
from vllm.v1.metrics import loggers
from vllm_monitor_engine.stat_logger import MonitorStatLogger
base = MonitorStatLogger.__mro__[1]
print(json.dumps({
    "stat_logger": "one for all engines" if base.__name__.startswith("Aggregate") else "one for each engine",
    "queue_limit": "max_num_queued_reqs" in {field.name for field in dataclasses.fields(SchedulerConfig)},
    "tells_sleep": hasattr(base, "record_sleep_state"),
    "tells_rejections": hasattr(base, "record_admission_rejection"),
}))
"""


class Hooks:
    """What a version offers, as far as one has to import it to know.

    Args:
        found: What the probe printed.
    """

    def __init__(self, found: Mapping[str, Any]) -> None:
        self.stat_logger = str(found["stat_logger"])
        self.has_queue_limit = bool(found["queue_limit"])
        self.tells_sleep = bool(found["tells_sleep"])
        self.tells_rejections = bool(found["tells_rejections"])


def hooks_of(env: vllm_env.VllmEnvironment) -> Hooks:
    """Ask a version what it offers, in a process of its own."""
    variables = vllm_env.server_environment(env, plugin=vllm_env.ensure_plugin())
    done = subprocess.run(
        [str(env.python), "-c", PROBE], env=variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    return Hooks(json.loads(done.stdout.splitlines()[-1]))


def plugin_server(env: vllm_env.VllmEnvironment, hooks: Hooks, folder: Path) -> VllmServer:
    """A server with the part inside it, whose spool is ``folder / "spool"``; not yet ready."""
    limits = ("--max-num-queued-reqs", str(QUEUE_LIMIT)) if hooks.has_queue_limit else ()
    return VllmServer(
        env,
        folder / "server.log",
        development_routes=False,
        extra_args=("--max-num-seqs", "8", *limits),
        plugin=vllm_env.ensure_plugin(),
        variables={
            "VLLMMON_ENABLED": "1",
            "VLLMMON_SPOOL_DIR": str(folder / "spool"),
            "VLLM_PLUGINS": "vllm_monitor,vllm_monitor_levers",
        },
    )


def observe(server: VllmServer, hooks: Hooks, spool: Path, folder: Path) -> Row:
    """Use a server that nobody else uses, in every way that there is; returns its row.

    Args:
        server: It may have served before; its gate has refused nothing so far.
        hooks: What its version offers.
        spool: Where the part inside it writes.
        folder: For the store.
    """
    config = MonitorConfig(targets=(server.url,), interval_seconds=0.5, spool_dir=spool, predict=False)
    store = PersistenceConfig(storage_dir=folder / "store")
    seen, began_at = Answers(), time.time()
    row: Row = {"server: stat logger": hooks.stat_logger, "server: would tell of sleep": hooks.tells_sleep}
    events: list[str] = []
    monitor = VLLMMonitor(config, persistence_config=store)
    monitor.add_listener(lambda tick: events.extend(one.event_type for one in tick.events))
    with monitor:
        wait_until(monitor.latest, "a first look")
        for number in range(12):
            seen.tokens.append(complete(server, number % 10)[1])
        for _ in range(3):  # one prompt of several blocks, again and again: it is cached
            body = {**completion(server, 5), "prompt": "number 7 please " * 40}
            seen.tokens.append(
                sum(chunk["usage"]["completion_tokens"] for chunk in stream(server, body) if chunk.get("usage"))
            )
        for name in ("pause", "resume", "abort", "reset_prefix_cache", "admission_limit", "refuse_prompt"):
            row[f"lever: {name}"] = LEVERS[name](server, seen)
        burst = crowd(server, 40, CROWD_TOKENS) if hooks.has_queue_limit else Answers()
        seen.tokens += burst.tokens
        freeze(server, seen, events)
        time.sleep(2.5)
        page = server.get("/metrics")
        time.sleep(2.5)
    assert not {"inside_end"} & set(events)
    row["told: stall of an idle engine"] = True
    with PersistenceManager(store) as kept:
        inside = {
            (sample["metric_name"].removeprefix(PREFIX), *sorted(sample["tags"].items())): float(sample["value"])
            for sample in kept.latest(target=server.url)
            if sample["metric_name"].startswith(PREFIX)
        }
        requests = kept.get_requests(began_at, limit=None, target=server.url)
        notes = [
            one.metadata["inside"]
            for one in kept.get_checkpoints(limit=None, target=server.url)
            if "inside" in one.metadata
        ]
    of_process: dict[str, float] = {key[0]: value for key, value in inside.items()}
    assert of_process["faults_total"] == of_process["lost_steps_total"] == of_process["lost_lines_total"] == 0
    row |= rejections(inside, page, burst, hooks)
    row |= requests_row(requests, seen)
    row |= counters_row(of_process)
    row |= histograms_row(inside, page)
    row |= life_row(notes)
    return dict(sorted(row.items()))


def check_row(version: str, row: Row) -> None:
    """Compare a row with the file, or write it there."""
    rows: dict[str, Row] = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    if os.environ.get("VLLMMON_UPDATE_COMPATIBILITY") == "1":
        rows[version] = row
        TABLE.write_text(json.dumps(dict(sorted(rows.items())), indent=2) + "\n")
    assert rows.get(version) == row, "tests/data/compatibility.json says otherwise; docs/inside.md is made of it"


# -- levers ------------------------------------------------------------------------------------------------------------


def is_offered(server: VllmServer, name: str) -> bool:
    return name in lever(server, "status")["levers"]


def try_pause(server: VllmServer, seen: Answers) -> bool:
    if not is_offered(server, "pause"):
        return False
    assert lever(server, "pause", {"mode": "keep", "for_seconds": 30})["is_paused"]
    client = threading.Thread(target=lambda: seen.tokens.append(complete(server, 1)[1]))
    client.start()
    client.join(1.5)
    assert client.is_alive(), "it waits"
    assert lever(server, "status")["in_flight"] == 1
    return try_resume(server, seen, client)


def try_resume(server: VllmServer, seen: Answers, waiting: threading.Thread | None = None) -> bool:
    if not is_offered(server, "resume"):
        return False
    assert not lever(server, "resume", {})["is_paused"]
    if waiting is not None:
        waiting.join(20)
        assert not waiting.is_alive()
    return True


def try_abort(server: VllmServer, seen: Answers) -> bool:
    """One of two requests, by the id that its client is told; in a pause, so that neither is over before."""
    if not is_offered(server, "abort"):
        return False
    pieces: list[dict[str, Any]] = []
    body = completion(server, 3, LONG_TOKENS)
    clients = [
        threading.Thread(target=lambda: seen.tokens.append(complete(server, 2)[1])),
        threading.Thread(target=lambda: pieces.extend(stream(server, body, request_id="to-be-aborted"))),
    ]
    lever(server, "pause", {"mode": "keep", "for_seconds": 30})
    for client in clients:
        client.start()
    wait_until(lambda: lever(server, "status")["in_flight"] == len(clients), "both")
    answer = lever(server, "abort", {"ids": ["cmpl-to-be-aborted"]})
    assert (answer["done"], answer["asked"], len(answer["aborted"])) == (True, 1, 1), answer
    lever(server, "resume", {})
    for client in clients:
        client.join(30)
        assert not client.is_alive()
    assert {piece["id"] for piece in pieces} == {"cmpl-to-be-aborted"}
    # Of a request that has no token yet, some versions send no more than how little was used.
    assert {choice["finish_reason"] for piece in pieces for choice in piece["choices"]} <= {"abort"}
    (used,) = (piece["usage"]["completion_tokens"] for piece in pieces if piece.get("usage"))
    assert used < LONG_TOKENS
    return True


def try_reset(server: VllmServer, seen: Answers) -> bool:
    if not is_offered(server, "reset_prefix_cache"):
        return False
    assert lever(server, "reset-prefix-cache", {})["done"]
    return True


def try_limit(server: VllmServer, seen: Answers) -> bool:
    if not is_offered(server, "admission_limit"):
        return False
    assert lever(server, "admission-limit", {"limit": 0, "for_seconds": 60})["done"]
    for _ in range(7):
        refused(server)
    assert lever(server, "admission-limit", {"limit": None})["before"] == 0
    seen.tokens.append(complete(server, 1)[1])
    return True


def try_refusal(server: VllmServer, seen: Answers) -> bool:
    body = completion(server, 77)
    lever(server, "refuse-prompt", {"prompt_hash": prompt_hash(body["prompt"]), "for_seconds": 2})
    refused(server, 77)
    seen.tokens.append(complete(server, 1)[1])
    return True


LEVERS = {
    "pause": try_pause,
    "resume": try_resume,
    "abort": try_abort,
    "reset_prefix_cache": try_reset,
    "admission_limit": try_limit,
    "refuse_prompt": try_refusal,
}


def freeze(server: VllmServer, seen: Answers, events: list[str]) -> None:
    """Stop the engine while it is idle: the page of metrics will never tell."""
    engine = server.process("engine")
    wait_until(lambda: lever(server, "status")["in_flight"] == 0, "that it is idle")
    events.clear()
    os.kill(engine.pid, signal.SIGSTOP)
    client = threading.Thread(target=lambda: seen.tokens.append(complete(server, 4)[1]))
    client.start()
    try:
        wait_until(lambda: "inside_stalled" in events, "the stall", 10)
    finally:
        os.kill(engine.pid, signal.SIGCONT)
    client.join(30)
    wait_until(lambda: "inside_stall_over" in events, "its end", 10)


# -- what was stored ---------------------------------------------------------------------------------------------------


def rejections(inside: Mapping[Any, float], page: str, burst: Answers, hooks: Hooks) -> Row:
    counted = {
        dict(labels)["reason"]: value for (name, *labels), value in inside.items() if name == "rejected_requests_total"
    }
    assert (counted["gate_limit"], counted["gate_prompt"]) == (7, 1), "as the client saw it"
    vllms_own = QUEUE_REJECTIONS.findall(page)
    if hooks.has_queue_limit:
        assert burst.refused > 0
    if hooks.tells_rejections:
        assert counted["max_num_queued_reqs"] == float(vllms_own[0]) == burst.refused, "as vLLM and the clients say"
    return {
        "told: refusals of the gate": True,
        "told: refusals of vLLM": hooks.tells_rejections,
        "server: queue limit of its own": hooks.has_queue_limit,
    }


def requests_row(requests: list[RequestSummary], seen: Answers) -> Row:
    whole = [one for one in requests if one.finish_reason == "length"]
    assert len(whole) == seen.served
    assert sum(one.output_tokens or 0 for one in whole) == sum(seen.tokens)
    assert len({one.metadata["server_request_id"] for one in requests}) == len(requests)
    assert set(FIGURES) <= {one.name for one in fields(RequestSummary)}
    return {f"request: {name}": all(getattr(one, name) is not None for one in whole) for name in FIGURES}


def counters_row(of_process: Mapping[str, float]) -> Row:
    counters: Row = {f"counter: {name}": of_process.get(f"{name}_total", 0) > 0 for name in COUNTERS}
    counters |= {f"counter: {name}": f"{name}_total" in of_process for name in COUNTERS_BESIDE}
    counters |= {f"gauge: {name}": name in of_process for name in GAUGES}
    return counters


def histograms_row(inside: Mapping[Any, float], page: str) -> Row:
    ours = {
        (name.removesuffix("_bucket"), dict(labels)["le"]): value
        for (name, *labels), value in inside.items()
        if name.endswith("_bucket")
    }
    theirs: dict[str, dict[str, float]] = {}
    for name, bound, count in BUCKET.findall(page):
        theirs.setdefault(name, {})[bound] = float(count)
    row: Row = {}
    for name in HISTOGRAMS:
        if name in theirs:
            assert {bound: ours.get((name, bound)) for bound in theirs[name]} == theirs[name], name
            assert theirs[name]["+Inf"] > 0
        row[f"histogram as in /metrics: {name}"] = name in theirs
    return row


def life_row(notes: list[dict[str, Any]]) -> Row:
    """The notes of a start are those of its checkpoints, where the watch was early enough, or of its header."""
    facts: dict[str, Any] = {}
    for note in notes:
        facts |= note
    row: Row = {f"phase: {name}": f"{name}_at" in facts for name in PHASES}
    row["told: size of the KV cache"] = facts.get("kv_capacity_tokens", 0) > 0
    row["told: fingerprint of the configuration"] = len(facts.get("config_fingerprint", "")) == FINGERPRINT_LENGTH
    return row
