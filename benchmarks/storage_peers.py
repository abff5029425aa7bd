"""The peers of the sample store: Prometheus, VictoriaMetrics and a table with a row per sample."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import sqlite3
import struct
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
from numpy.typing import NDArray

from storage_data import Scrapes
from vllm_monitor.records import Series

SCRAPES_PER_WRITE = 10
ROW_SCHEMA = """CREATE TABLE samples (series INTEGER, time_ms INTEGER, value REAL, PRIMARY KEY (series, time_ms))
WITHOUT ROWID"""


class Peer(Protocol):
    """A store that takes scrapes and answers range queries."""

    name: str  # as "peer" of the figures

    def write(self, scrapes: Scrapes) -> None: ...

    def finish(self) -> None: ...

    def cpu_seconds(self) -> float: ...

    def data_bytes(self) -> int: ...

    def raw(self, series: Series, start_ms: int, end_ms: int) -> int: ...

    def stepped(self, metric_name: str, series: Series | None, start_ms: int, end_ms: int, step_ms: int) -> int: ...

    def stop(self) -> None: ...


class RemoteWriteBody:
    """Scrapes as bodies of the Prometheus remote-write protocol: protobuf, in literals of snappy.

    The bytes of a request of equal length are made once; then only values and times are put in their places.
    """

    def __init__(self, series: Sequence[Series], scrapes_per_write: int) -> None:
        body = bytearray()
        self._value_at = np.zeros((len(series), scrapes_per_write), dtype=np.int64)
        sample_bytes = 2 + 9 + 1 + 6
        for column, one in enumerate(series):
            labels = b"".join(
                _field(1, _field(1, name.encode()) + _field(2, value.encode()))
                for name, value in sorted((("__name__", one.name), *one.labels))
            )
            inside = len(labels) + scrapes_per_write * sample_bytes
            body += b"\x0a" + _varint(inside) + labels
            for row in range(scrapes_per_write):
                self._value_at[column, row] = len(body) + 3
                body += b"\x12" + _varint(sample_bytes - 2) + b"\x09" + bytes(8) + b"\x10" + bytes(6)
        self._template = np.frombuffer(bytes(body), dtype=np.uint8)

    def body(self, times_ms: NDArray[np.int64], values: NDArray[np.float64]) -> bytes:
        body = self._template.copy()
        value_bytes = np.ascontiguousarray(values.T).view(np.uint8).reshape(*self._value_at.shape, 8)
        for index in range(8):
            body[self._value_at + index] = value_bytes[:, :, index]
        for index in range(6):  # of a varint; unix milliseconds of this century have 41 bits
            more = 0x80 if index < 5 else 0
            body[self._value_at + 9 + index] = ((times_ms >> (7 * index)) & 0x7F | more).astype(np.uint8)
        return _snappy(body.tobytes())


class HttpPeer:
    """A time-series database in a process of its own, spoken to over HTTP."""

    name = ""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = _free_port()
        self._log = (folder / "log").open("wb")
        command = self._command(folder, self._port)
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)
        self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)
        self._wait_until_ready()

    def _command(self, folder: Path, port: int) -> list[str]:
        raise NotImplementedError

    def _wait_until_ready(self) -> None:
        for _ in range(300):
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self._request("GET", self.READY)[0] == 200:
                    return
            self._connection.close()
            time.sleep(0.1)
        raise RuntimeError(f"{self.name} does not start: {(self._folder / 'log').read_text()[-2000:]}")

    READY = "/health"

    def _request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        headers = {"Content-Encoding": "snappy", "Content-Type": "application/x-protobuf"} if body else {}
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def write(self, scrapes: Scrapes) -> None:
        maker = RemoteWriteBody(scrapes.layout.series, SCRAPES_PER_WRITE)
        for start in range(0, len(scrapes.times_ms), SCRAPES_PER_WRITE):
            rows = slice(start, start + SCRAPES_PER_WRITE)
            times, values = scrapes.times_ms[rows], scrapes.values[rows]
            if len(times) < SCRAPES_PER_WRITE:
                maker = RemoteWriteBody(scrapes.layout.series, len(times))
            status, answer = self._request("POST", "/api/v1/write", maker.body(times, values))
            assert status in {200, 204}, (status, answer[:300])

    def finish(self) -> None:
        raise NotImplementedError

    def cpu_seconds(self) -> float:
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def _folder_bytes(self, folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def raw(self, series: Series, start_ms: int, end_ms: int) -> int:
        seconds = (end_ms - start_ms) // 1000
        asked = urllib.parse.urlencode({"query": f"{selector(series)}[{seconds}s]", "time": end_ms / 1000})
        return self._ask(f"/api/v1/query?{asked}&nocache=1")

    def stepped(self, metric_name: str, series: Series | None, start_ms: int, end_ms: int, step_ms: int) -> int:
        query = f'{{__name__="{metric_name}"}}' if series is None else selector(series)
        asked = {"query": query, "start": start_ms / 1000, "end": end_ms / 1000, "step": step_ms / 1000}
        return self._ask(f"/api/v1/query_range?{urllib.parse.urlencode(asked)}&nocache=1")

    def _ask(self, path: str) -> int:
        status, answer = self._request("GET", path)
        assert status == 200, answer[:300]
        return len(answer)

    def stop(self) -> None:
        self._connection.close()
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


class Prometheus(HttpPeer):
    """Prometheus with its remote-write receiver; its bytes are those of a snapshot, so without its log."""

    name = "prometheus"
    READY = "/-/ready"

    def _command(self, folder: Path, port: int) -> list[str]:
        (folder / "prometheus.yml").write_text("global: {}\n")
        return [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            "--storage.tsdb.retention.time=100y",
            f"--web.listen-address=127.0.0.1:{port}",
            "--web.enable-remote-write-receiver",
            "--web.enable-admin-api",
        ]

    def finish(self) -> None:
        status, answer = self._request("POST", "/api/v1/admin/tsdb/snapshot")
        assert status == 200, answer
        self._snapshot = json.loads(answer)["data"]["name"]

    def data_bytes(self) -> int:
        return self._folder_bytes(self._folder / "data" / "snapshots" / self._snapshot)


class VictoriaMetrics(HttpPeer):
    """VictoriaMetrics, single node; its bytes are those after everything is flushed and merged."""

    name = "victoria_metrics"

    def _command(self, folder: Path, port: int) -> list[str]:
        return [
            "victoria-metrics",
            f"-storageDataPath={folder / 'data'}",
            "-retentionPeriod=100y",
            f"-httpListenAddr=127.0.0.1:{port}",
        ]

    def finish(self) -> None:
        self._request("GET", "/internal/force_flush")
        self._request("GET", "/internal/force_merge")
        sizes = [0, 1, 2, 3]
        while len(set(sizes[-4:])) > 1:  # merging goes on in the background
            time.sleep(1.0)
            sizes.append(self.data_bytes())

    def data_bytes(self) -> int:
        with contextlib.suppress(FileNotFoundError):  # a part that was merged away while we looked
            return self._folder_bytes(self._folder / "data")
        return -1


class RowSchema:
    """A lean table in SQLite: one row per sample, committed scrape by scrape."""

    name = "row_schema"

    def __init__(self, folder: Path) -> None:
        self._path = folder / "rows.db"
        self._connection = sqlite3.connect(self._path)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute(ROW_SCHEMA)
        self._columns: dict[Series, int] = {}
        self._names: dict[str, list[int]] = {}

    def write(self, scrapes: Scrapes) -> None:
        self._columns = {series: column for column, series in enumerate(scrapes.layout.series)}
        for series, column in self._columns.items():
            self._names.setdefault(series.name, []).append(column)
        numbers = range(len(self._columns))
        for time_ms, row in zip(scrapes.times_ms.tolist(), scrapes.values, strict=True):
            rows = zip(numbers, [time_ms] * len(row), row.tolist(), strict=True)
            self._connection.executemany("INSERT INTO samples VALUES (?, ?, ?)", rows)
            self._connection.commit()

    def finish(self) -> None:
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def cpu_seconds(self) -> float:
        return time.process_time()

    def data_bytes(self) -> int:
        return self._path.stat().st_size

    def raw(self, series: Series, start_ms: int, end_ms: int) -> int:
        query = "SELECT time_ms / 1000.0, value FROM samples WHERE series = ? AND time_ms BETWEEN ? AND ?"
        rows = self._connection.execute(query, (self._columns[series], start_ms, end_ms)).fetchall()
        return len(json.dumps([[seconds, str(value)] for seconds, value in rows]))

    def stepped(self, metric_name: str, series: Series | None, start_ms: int, end_ms: int, step_ms: int) -> int:
        columns = self._names[metric_name] if series is None else [self._columns[series]]
        query = """SELECT max(time_ms) / 1000.0, value FROM samples WHERE series = ? AND time_ms BETWEEN ? AND ?
                   GROUP BY (time_ms - ?) / ?"""
        found = [
            self._connection.execute(query, (column, start_ms, end_ms, start_ms, step_ms)).fetchall()
            for column in columns
        ]
        return len(json.dumps([[[seconds, str(value)] for seconds, value in rows] for rows in found]))

    def stop(self) -> None:
        self._connection.close()


def installed_peers() -> Iterator[Callable[[Path], Peer]]:
    """The databases that this machine has."""
    for peer, program in ((Prometheus, "prometheus"), (VictoriaMetrics, "victoria-metrics")):
        if shutil.which(program):
            yield peer


def selector(series: Series) -> str:
    """A series as PromQL selects it."""
    pairs = [f"{name}={json.dumps(value)}" for name, value in series.labels]
    return "{" + ",".join((f'__name__="{series.name}"', *pairs)) + "}"


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: Any = one.getsockname()[1]
        return int(port)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(number: int, content: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + _varint(len(content)) + content


def _snappy(raw: bytes) -> bytes:
    """Snappy that does not compress: the receiver's work is measured, not the sender's."""
    out = [_varint(len(raw))]
    for start in range(0, len(raw), 65536):
        literal = raw[start : start + 65536]
        out.append(b"\xf4" + struct.pack("<H", len(literal) - 1) + literal)
    return b"".join(out)
