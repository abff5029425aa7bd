"""The lines of a recording: one JSON object per observation.

The kinds ``metrics``, ``health``, ``proc``, ``log`` and ``client`` (with the tag ``canary``) are the common
format. Ours adds what that lacks: the kinds ``meta``, ``version``, ``load``, ``paused``, ``gpu`` and ``engine``,
and the keys ``failure`` (kind and message), ``kinds`` (one letter per series), ``malformed`` and ``target``. Readers
that do not know them lose nothing by ignoring them.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from vllm_monitor.collectors.exposition import intern_layout
from vllm_monitor.collectors.host import parse_pressure
from vllm_monitor.collectors.probe_failures import failure_from_recorded_status, failure_from_status
from vllm_monitor.collectors.recording_engine_lines import (
    KIND_LETTERS,
    KINDS_BY_LETTER,
    decode_engine,
    encode_engine,
)
from vllm_monitor.collectors.sample_lines import infer_kind, parse_series_text
from vllm_monitor.records import (
    CanaryObservation,
    EngineObservation,
    GpuInfo,
    GpuObservation,
    HealthObservation,
    HostPressure,
    Layout,
    LoadObservation,
    LogObservation,
    MetricKind,
    Observation,
    PageObservation,
    PauseObservation,
    ProbeFailure,
    ProcessInfo,
    ProcessObservation,
    Series,
    VersionObservation,
)

__all__ = ["GROUND_TRUTH_KINDS", "LineDecoder", "LineEncoder", "MalformedLineError"]

GROUND_TRUTH_KINDS = frozenset({"client", "event"})
"""What a monitor must not see: what clients met and what was injected; only our own canary is exempt."""

# Keys of a process in a line, and the fields they stand for.
_PROCESS_KEYS = {
    "pid": "pid",
    "role": "role",
    "state": "state",
    "cpu": "cpu_seconds",
    "rss": "rss_bytes",
    "vms": "vms_bytes",
    "thr": "threads",
    "fds": "fds",
    "vcs": "voluntary_switches",
    "ics": "involuntary_switches",
}


class MalformedLineError(ValueError):
    """A line that is no observation."""


class DuplicateKeys(dict[str, Any]):
    """An object some of whose keys occur twice, as a faulty page's series may.

    Args:
        pairs: All of them, in order.
    """

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


class LineEncoder:
    """Turns observations into lines.

    Args:
        target: The target of the recording; observations of another one say so themselves.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._layout: Layout | None = None
        self._keys: list[str] = []
        self._kinds = ""

    def encode(self, observation: Observation) -> str:
        """One line, with its line end."""
        if isinstance(observation, PageObservation):
            return self._encode_page(observation)
        for kind, fields in _ENCODERS:
            if isinstance(observation, kind):
                return f"{json.dumps(self._common(observation, fields(observation)))}\n"
        msg = f"{type(observation).__name__} has no place in a recording"
        raise TypeError(msg)

    def encode_meta(self, started_at: float, interval_seconds: float | None) -> str:
        """The first line of a recording."""
        meta = {"kind": "meta", "ts": started_at, "target": self._target, "interval": interval_seconds}
        return f"{json.dumps({**meta, 'format': 1})}\n"

    def _common(self, observation: Observation, fields: dict[str, Any]) -> dict[str, Any]:
        if observation.target != self._target:
            fields["target"] = observation.target
        return fields

    def _encode_page(self, page: PageObservation) -> str:
        head: dict[str, Any] = {
            "kind": "metrics",
            "ts": page.timestamp,
            "status": _status_of(page),
            "lat": page.latency_seconds,
        }
        if page.failure is not None:
            head["failure"] = _failure_pair(page.failure)
        if page.malformed_lines:
            head["malformed"] = page.malformed_lines
        text = json.dumps(self._common(page, head))[:-1]
        if page.layout is None or page.values is None:
            return f'{text}, "v": {{}}}}\n'
        if page.layout is not self._layout:
            self._layout = page.layout
            self._keys = [f"{json.dumps(str(series))}: " for series in page.layout.series]
            self._kinds = "".join(KIND_LETTERS[series.kind] for series in page.layout.series)
        numbers = json.dumps(page.values.tolist())[1:-1].split(", ")
        # Written by hand because a page may hold a series twice, which a dictionary cannot.
        values = ", ".join(map("".join, zip(self._keys, numbers, strict=True)))
        return f'{text}, "kinds": "{self._kinds}", "v": {{{values}}}}}\n'


class LineDecoder:
    """Turns lines into observations; consecutive pages with the same series share one layout.

    Args:
        target: The target of lines that name none.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self._names: list[str] = []
        self._letters: str | None = None
        self._layout: Layout | None = None

    def decode(self, line: Mapping[str, Any]) -> Observation | None:
        """The observation of a line; ``None`` for ground truth and for kinds that we do not know.

        Raises:
            MalformedLineError: When the line is damaged.
        """
        try:
            return self._decode(line)
        except MalformedLineError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise MalformedLineError(str(error)) from error

    def _decode(self, line: Mapping[str, Any]) -> Observation | None:
        kind = line["kind"]
        latency = line.get("lat")
        if kind == "client":
            latency = line.get("e2e")
            if line.get("tag") != "canary" or latency is None:
                return None
        timing: dict[str, Any] = {
            "target": str(line.get("target", self.target)),
            "timestamp": _finite(line["ts"]),
            "latency_seconds": 0.0 if latency is None else _finite(latency),
        }
        if timing["latency_seconds"] < 0:
            msg = "a result before its question"
            raise MalformedLineError(msg)
        if kind == "metrics":
            return self._page(line, timing)
        decoder = _DECODERS.get(kind)
        return None if decoder is None else decoder(line, timing)

    def _page(self, line: Mapping[str, Any], timing: dict[str, Any]) -> PageObservation:
        status, failure = _status_and_failure(line, f"{self.target}/metrics")
        series = line.get("v")
        pairs = series.pairs if isinstance(series, DuplicateKeys) else list((series or {}).items())
        if not pairs or failure is not None:
            failure = failure or ProbeFailure("other", "the recording holds no values of this scrape")
            return PageObservation(**timing, status=status, failure=failure, malformed_lines=_malformed(line))
        names = [name for name, _ in pairs]
        values = array("d", [value for _, value in pairs])
        layout = self._layout_of(names, line.get("kinds"))
        return PageObservation(**timing, layout=layout, values=values, status=status, malformed_lines=_malformed(line))

    def _layout_of(self, names: list[str], letters: str | None) -> Layout:
        if self._layout is None or names != self._names or letters != self._letters:
            series = [parse_series_text(name) for name in names]
            if letters is not None and len(letters) == len(series):
                kinds = [KINDS_BY_LETTER.get(letter, MetricKind.UNKNOWN) for letter in letters]
            else:
                known = {one.name for one in series}
                kinds = [infer_kind(one.name, known) for one in series]
            self._layout = intern_layout(
                [Series(one.name, one.labels, kind) for one, kind in zip(series, kinds, strict=True)]
            )
            self._names, self._letters = names, letters
        return self._layout


def _status_of(observation: PageObservation | HealthObservation | CanaryObservation) -> int | str | None:
    if observation.status is not None:
        return observation.status
    return None if observation.failure is None else f"{observation.failure.kind}: {observation.failure.message}"


def _failure_pair(failure: ProbeFailure | None) -> list[str] | None:
    return None if failure is None else [failure.kind, failure.message]


def _with_failure(fields: dict[str, Any], failure: ProbeFailure | None) -> dict[str, Any]:
    return fields if failure is None else {**fields, "failure": _failure_pair(failure)}


def _health(one: HealthObservation) -> dict[str, Any]:
    fields = {"kind": "health", "ts": one.timestamp, "status": _status_of(one), "lat": one.latency_seconds}
    return _with_failure(fields, one.failure)


def _canary(one: CanaryObservation) -> dict[str, Any]:
    fields = {
        "kind": "client",
        "ts": one.timestamp,
        "tag": "canary",
        "status": one.status,
        "err": None if one.failure is None else f"{one.failure.kind}: {one.failure.message}",
        "ttft": one.time_to_first_token_seconds,
        "e2e": one.latency_seconds,
        "ok": one.ok,
    }
    return _with_failure(fields, one.failure)


def _process(one: ProcessObservation) -> dict[str, Any]:
    host = one.host
    pressures = {"cpu": host.cpu_some_avg10, "memory": host.memory_some_avg10, "io": host.io_some_avg10}
    fields = {
        "kind": "proc",
        "ts": one.timestamp,
        "procs": [{key: getattr(info, name) for key, name in _PROCESS_KEYS.items()} for info in one.processes],
        "host_cpu": host.cpu_percent,
        "load1": host.load1,
        "mem_avail": host.memory_available_bytes,
        "psi": {name: f"some avg10={value!r}" for name, value in pressures.items() if value is not None},
        "listen_rxq": one.listen_queue,
        "estab": one.established,
        "rc": one.exit_code,
    }
    return _with_latency(fields, one.latency_seconds)


def _log(one: LogObservation) -> dict[str, Any]:
    return _with_latency({"kind": "log", "ts": one.timestamp, "line": one.line}, one.latency_seconds)


def _with_latency(fields: dict[str, Any], latency_seconds: float) -> dict[str, Any]:
    """The common format knows no latency for these; ours is written where there is one."""
    return {**fields, "lat": latency_seconds} if latency_seconds else fields


def _version(one: VersionObservation) -> dict[str, Any]:
    fields = _extra("version", one, version=one.version, models=list(one.models))
    return _with_failure(fields, one.models_failure)


def _load(one: LoadObservation) -> dict[str, Any]:
    return _extra("load", one, load=one.server_load)


def _paused(one: PauseObservation) -> dict[str, Any]:
    return _extra("paused", one, paused=one.is_paused)


def _gpu(one: GpuObservation) -> dict[str, Any]:
    return _extra("gpu", one, gpus=[asdict(info) for info in one.gpus])


def _extra(kind: str, one: Observation, **fields: object) -> dict[str, Any]:
    return {"kind": kind, "ts": one.timestamp, "lat": one.latency_seconds, **fields}


_ENCODERS: tuple[tuple[type, Callable[[Any], dict[str, Any]]], ...] = (
    (HealthObservation, _health),
    (CanaryObservation, _canary),
    (ProcessObservation, _process),
    (LogObservation, _log),
    (VersionObservation, _version),
    (LoadObservation, _load),
    (PauseObservation, _paused),
    (GpuObservation, _gpu),
    (EngineObservation, encode_engine),
)


def _finite(value: object) -> float:
    number = float(value)  # type: ignore[arg-type]  # whatever JSON holds; a TypeError is a malformed line
    if isinstance(value, (str, bool)) or not math.isfinite(number):
        msg = f"{value!r} is no time"
        raise MalformedLineError(msg)
    return number


_Number = TypeVar("_Number", int, float)


def _optional(value: object, convert: Callable[[Any], _Number]) -> _Number | None:
    return None if value is None else convert(value)


def _malformed(line: Mapping[str, Any]) -> int:
    return int(line.get("malformed") or 0)


def _recorded_failure(line: Mapping[str, Any]) -> ProbeFailure | None:
    pair = line.get("failure")
    if pair is None:
        return None
    kind, message = pair
    return ProbeFailure(str(kind), str(message))


def _status_and_failure(line: Mapping[str, Any], url: str) -> tuple[int | None, ProbeFailure | None]:
    failure = _recorded_failure(line)
    status = line.get("status")
    if status is None or isinstance(status, str):
        return None, failure or failure_from_recorded_status(status or "no answer")
    number = int(status)
    if not 0 <= number <= 999:
        raise MalformedLineError
    if failure is None and number != 200:
        failure = failure_from_status(number, url, api_key_given=False)
    return number, failure


def _decode_health(line: Mapping[str, Any], timing: dict[str, Any]) -> HealthObservation:
    status, failure = _status_and_failure(line, "/health")
    if status is not None:
        failure = _recorded_failure(line)
    return HealthObservation(**timing, status=status, failure=failure)


def _decode_canary(line: Mapping[str, Any], timing: dict[str, Any]) -> CanaryObservation:
    status = line.get("status")
    failure = _recorded_failure(line)
    error = line.get("err")
    if failure is None and error is not None:
        failure = failure_from_recorded_status(str(error))
        if failure.kind == "other" and isinstance(status, int):
            failure = ProbeFailure("http", failure.message)
    elif failure is None and status != 200:
        failure = failure_from_recorded_status(str(status))
    return CanaryObservation(
        **timing,
        ok=bool(line.get("ok", failure is None)),
        status=int(status) if isinstance(status, int) else None,
        failure=failure,
        time_to_first_token_seconds=_optional(line.get("ttft"), float),
    )


def _decode_process(line: Mapping[str, Any], timing: dict[str, Any]) -> ProcessObservation:
    psi = line.get("psi") or {}
    pressure = {name: parse_pressure(str(psi.get(name, ""))) for name in ("cpu", "memory", "io")}
    return ProcessObservation(
        **timing,
        processes=tuple(map(_decode_one_process, line.get("procs") or ())),
        host=HostPressure(
            cpu_percent=_optional(line.get("host_cpu"), float),
            load1=_optional(line.get("load1"), float),
            memory_available_bytes=_optional(line.get("mem_avail"), int),
            cpu_some_avg10=pressure["cpu"],
            memory_some_avg10=pressure["memory"],
            io_some_avg10=pressure["io"],
        ),
        listen_queue=_optional(line.get("listen_rxq"), int),
        established=_optional(line.get("estab"), int),
        exit_code=_optional(line.get("rc"), int),
    )


def _decode_one_process(fields: Mapping[str, Any]) -> ProcessInfo:
    cpu_seconds = _optional(fields.get("cpu"), float)
    return ProcessInfo(
        pid=int(fields["pid"]),
        role=str(fields.get("role") or "other:?"),
        state=str(fields.get("state") or "unknown"),
        cpu_seconds=0.0 if cpu_seconds is None else cpu_seconds,
        rss_bytes=int(fields.get("rss") or 0),
        vms_bytes=int(fields.get("vms") or 0),
        threads=int(fields.get("thr") or 0),
        fds=_optional(fields.get("fds"), int),
        voluntary_switches=_optional(fields.get("vcs"), int),
        involuntary_switches=_optional(fields.get("ics"), int),
    )


def _decode_log(line: Mapping[str, Any], timing: dict[str, Any]) -> LogObservation:
    return LogObservation(**timing, line=str(line["line"]))


def _decode_version(line: Mapping[str, Any], timing: dict[str, Any]) -> VersionObservation:
    version: Any = line.get("version")
    models: Sequence[Any] = line.get("models") or ()
    return VersionObservation(
        **timing,
        version=None if version is None else str(version),
        models=tuple(map(str, models)),
        models_failure=_recorded_failure(line),
    )


def _decode_load(line: Mapping[str, Any], timing: dict[str, Any]) -> LoadObservation:
    return LoadObservation(**timing, server_load=_optional(line.get("load"), float))


def _decode_paused(line: Mapping[str, Any], timing: dict[str, Any]) -> PauseObservation:
    paused = line.get("paused")
    return PauseObservation(**timing, is_paused=None if paused is None else bool(paused))


def _decode_gpu(line: Mapping[str, Any], timing: dict[str, Any]) -> GpuObservation:
    return GpuObservation(**timing, gpus=tuple(GpuInfo(**fields) for fields in line.get("gpus") or ()))


_DECODERS: dict[str, Callable[[Mapping[str, Any], dict[str, Any]], Observation]] = {
    "health": _decode_health,
    "client": _decode_canary,
    "proc": _decode_process,
    "log": _decode_log,
    "version": _decode_version,
    "load": _decode_load,
    "paused": _decode_paused,
    "gpu": _decode_gpu,
    "engine": decode_engine,
}
