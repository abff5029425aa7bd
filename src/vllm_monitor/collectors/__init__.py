"""Everything that looks at a server: over HTTP, at its processes and host, its GPUs, its log, and recordings.

Each collector delivers observations (:mod:`vllm_monitor.records`) and none of them judges what it sees.
"""

from vllm_monitor.collectors.engine_lines import ENGINE_METRICS
from vllm_monitor.collectors.engine_spool import EngineSpool, ReadMark, default_spool_dir
from vllm_monitor.collectors.exposition import PageParser, ParsedPage
from vllm_monitor.collectors.gpu import GpuCollector
from vllm_monitor.collectors.http_session import Connections, make_tls_context
from vllm_monitor.collectors.local_machine import LocalMachine
from vllm_monitor.collectors.probes import TargetProbe, authorisation_headers
from vllm_monitor.collectors.processes import ProcessCollector
from vllm_monitor.collectors.recording import (
    LEAST_INTERVAL_SECONDS,
    MOST_INTERVAL_SECONDS,
    Recording,
    RecordingWriter,
    read_recording,
)
from vllm_monitor.collectors.recording_truth import RecordedTruth
from vllm_monitor.collectors.samples import PROBE_METRICS, ProbeSampler
from vllm_monitor.collectors.server_facts import ServerFacts
from vllm_monitor.collectors.server_log import LogTail
from vllm_monitor.collectors.targets import host_and_port, normalise_target

__all__ = [
    "ENGINE_METRICS",
    "LEAST_INTERVAL_SECONDS",
    "MOST_INTERVAL_SECONDS",
    "PROBE_METRICS",
    "Connections",
    "EngineSpool",
    "GpuCollector",
    "LocalMachine",
    "LogTail",
    "PageParser",
    "ParsedPage",
    "ProbeSampler",
    "ProcessCollector",
    "ReadMark",
    "RecordedTruth",
    "Recording",
    "RecordingWriter",
    "ServerFacts",
    "TargetProbe",
    "authorisation_headers",
    "default_spool_dir",
    "host_and_port",
    "make_tls_context",
    "normalise_target",
    "read_recording",
]
