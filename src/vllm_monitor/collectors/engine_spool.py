"""Reads what the part inside a server has left in its spool: also what it left while nobody watched.

Files are only read, never removed: their writer keeps them within its bound. Who the lines are from is decided by their
header: by the URL that the operator gave the server, else by the server's processes, else (for one that is dead) by its
port. Files of users who are neither root, nor ours, nor the server's are left alone.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_monitor.collectors.engine_header import started_note
from vllm_monitor.collectors.engine_lines import note_of, rejected_of, requests_of, samples_of
from vllm_monitor.collectors.shared_engines import SharedEngines
from vllm_monitor.collectors.targets import normalise_target
from vllm_monitor.errors import ConfigurationError
from vllm_monitor.records import EngineNote, EngineObservation, RequestSummary

__all__ = ["EngineSpool", "default_spool_dir"]

_FILE = re.compile(r"(?P<spool>(?P<pid>[0-9]{1,10})-[0-9]{1,20}-[0-9]{1,6})\.(?P<segment>[0-9]{6,9})\.spool")
_FORMAT = 1
_CHUNK_BYTES = 1 << 20
"""Read at once of one spool: some ten minutes of a busy server, so that a long absence is made up for bit by bit."""
_MOST_HEADER_BYTES = 1 << 16
_STORED_TO_SECONDS = 0.001
"""The store keeps times in milliseconds; lines are written at least fifty apart."""
_MOST_API_SERVERS = 10_000


def default_spool_dir(user: int | None = None) -> Path:
    """Where the servers of a user leave what they saw, unless they were told of another folder."""
    return Path(tempfile.gettempdir()) / f"vllm-monitor-{os.getuid() if user is None else user}"


@dataclass(slots=True)
class _Process:
    """One process that writes, and how far it was read."""

    name: str
    pid: int
    api_server: str
    model: str
    segment: int
    offset: int = 0
    number: int = 0
    missing: int = 0
    rest: bytes = b""
    requests: list[RequestSummary] = field(default_factory=list)
    notes: list[EngineNote] = field(default_factory=list)
    ended: bool = False
    shares_engines: bool = False


class EngineSpool:
    """Follows the spools of one server. For one thread at a time; reads files, so not for an event loop.

    Args:
        target: The server's URL in its one form, or another name for what runs in a process of its own.
        folders: Where to look beside the default folders of the server's user and of ours.
        read_until: What is already stored, by API process: unix seconds of its newest line.
        port: On which it serves; ``None`` where it serves on none.
    """

    def __init__(
        self,
        target: str,
        folders: Iterable[Path] = (),
        read_until: Mapping[str, float] | None = None,
        *,
        port: int | None = None,
    ) -> None:
        self.target = target
        self._port = port
        self._folders = tuple(folders)
        self._read_until = dict(read_until or {})
        self._processes: dict[str, _Process] = {}
        self._shared = SharedEngines()
        self._foreign: dict[Path, frozenset[int]] = {}  # with which processes of ours it was found to be foreign

    def collect(self, pids: Collection[int], now: float, *, is_local: bool = True) -> list[EngineObservation]:
        """What has come since the last call, oldest first.

        Args:
            pids: The server's processes that serve its port.
            now: Unix seconds.
            is_local: Whether the server runs on this machine, so that its port names it.
        """
        users = {os.getuid(), *(_user_of(pid) for pid in pids)} - {None}
        segments: dict[str, dict[int, Path]] = {}
        for folder in (*self._folders, *(default_spool_dir(user) for user in users)):
            for path, spool, segment in _listing(folder):
                segments.setdefault(spool, {})[segment] = path
        found: list[EngineObservation] = []
        for spool, paths in sorted(segments.items(), key=lambda item: int(item[0].split("-")[1])):
            process = self._processes.get(spool) or self._adopt(spool, paths, pids, users, is_local)
            if process is not None:
                found += self._read(process, paths, now)
        for spool in self._processes.keys() - segments.keys():
            del self._processes[spool]
        listed = {path for paths in segments.values() for path in paths.values()}
        self._foreign = {path: known for path, known in self._foreign.items() if path in listed}
        sharing = {one.api_server for one in self._processes.values() if one.shares_engines}
        found.sort(key=lambda one: one.timestamp)
        return [self._shared.judge(one) if one.api_server in sharing else one for one in found]

    def _adopt(
        self,
        spool: str,
        paths: Mapping[int, Path],
        pids: Collection[int],
        users: Collection[int | None],
        is_local: bool,
    ) -> _Process | None:
        first = min(paths)
        path = paths[first]
        if self._foreign.get(path) == frozenset(pids):
            return None
        try:
            header = _header(path, users)
        except OSError:
            return None
        if header is None or not self._is_ours(header, pids, is_local):
            self._foreign[path] = frozenset(pids)
            return None
        self._foreign.pop(path, None)
        taken = {one.api_server for one in self._processes.values() if not one.ended and _is_alive(one.pid)}
        # Of several API servers each has a number of its own, which stays the same whoever is found first.
        numbers = (header.get("api_server"), *range(len(taken) + 1))
        slot = next(str(one) for one in numbers if _is_number_of_server(one) and str(one) not in taken)
        pid, model = header.get("pid"), header.get("model")
        process = _Process(
            spool, pid if isinstance(pid, int) else 0, slot, model if isinstance(model, str) else "", first
        )
        count = header.get("api_servers")
        process.shares_engines = isinstance(count, int) and count > 1
        started = started_note(header)
        if started is not None:
            process.notes.append(started)
        self._processes[spool] = process
        return process

    def _is_ours(self, header: Mapping[str, Any], pids: Collection[int], is_local: bool) -> bool:
        url, pid = header.get("target_url"), header.get("pid")
        if isinstance(url, str) and url:
            try:
                return normalise_target(url) == self.target
            except ConfigurationError:
                return False
        if pid in pids:
            return True
        alive = isinstance(pid, int) and _is_alive(pid)
        return is_local and not alive and self._port is not None and header.get("port") == self._port

    def _read(self, process: _Process, paths: Mapping[int, Path], now: float) -> list[EngineObservation]:
        found: list[EngineObservation] = []
        left = _CHUNK_BYTES
        while left > 0:
            path = paths.get(process.segment)
            data = b"" if path is None else _read_from(path, process.offset, left)
            if not data:
                later = [segment for segment in paths if segment > process.segment]
                if not later:
                    break
                process.segment, process.offset, process.rest = min(later), 0, b""
                continue
            left -= len(data)
            process.offset += len(data)
            *lines, process.rest = (process.rest + data).split(b"\n")
            if len(process.rest) > _CHUNK_BYTES:
                process.rest = b""  # no line of ours is so long
            for line in lines:
                observation = self._take(process, line, now)
                if observation is not None:
                    found.append(observation)
        return found

    def _take(self, process: _Process, text: bytes, now: float) -> EngineObservation | None:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            return None  # torn by a full disk; its number is missing then
        if not isinstance(line, dict) or line.get("kind") == "header":
            return None
        number, at = line.get("n"), line.get("t")
        if not isinstance(number, int) or isinstance(number, bool) or not process.number < number < 10**15:
            return None
        process.missing += number - process.number - 1
        process.number = number
        if line.get("kind") == "unwritable":  # its writer could not put it into words
            process.missing += 1
            return None
        if line.get("kind") == "requests":
            process.requests += requests_of(line, self.target, process.model, f"{process.name}-{number}")
            return None
        if line.get("kind") != "totals":
            note = note_of(line)
            if note is not None:
                process.ended = process.ended or note.kind == "end"
                process.notes.append(note)
            return None
        if not isinstance(at, int | float) or isinstance(at, bool) or not 0 < at < 1e11:
            return None
        return self._observation(process, line, min(float(at), now))

    def _observation(self, process: _Process, line: dict[str, Any], at: float) -> EngineObservation | None:
        requests, process.requests = tuple(process.requests), []
        notes, process.notes = tuple(process.notes), []
        if at <= self._read_until.get(process.api_server, 0.0) + _STORED_TO_SECONDS:
            return None  # an earlier watch has stored it
        layout, values = samples_of({**line, "missing_lines": process.missing}, process.api_server)
        figures = {
            name: _figure(line.get(name)) for name in ("in_flight", "stalled_seconds", "lost_steps", "lost_lines")
        }
        oldest, age = line.get("oldest_request_seconds"), line.get("step_age_seconds")
        return EngineObservation(
            target=self.target,
            timestamp=at,
            api_server=process.api_server,
            layout=layout,
            values=values,
            in_flight=figures["in_flight"],
            oldest_request_seconds=None if oldest is None else _figure(oldest),
            step_age_seconds=None if age is None else _figure(age),
            stalled_seconds=figures["stalled_seconds"],
            lost=int(figures["lost_steps"] + figures["lost_lines"]) + process.missing,
            faults=int(_figure(line.get("faults"))),
            rejected=rejected_of(line),
            is_paused=_switch(line.get("paused")),
            requests=requests,
            notes=notes,
        )


def _is_number_of_server(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_API_SERVERS


def _figure(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15
    return float(value) if is_number else 0.0


def _switch(value: Any) -> bool | None:
    return value == 1 if value in (0, 1) else None


def _listing(folder: Path) -> list[tuple[Path, str, int]]:
    try:
        with os.scandir(folder) as entries:
            matches = [(Path(entry.path), _FILE.fullmatch(entry.name)) for entry in entries]
    except OSError:
        return []
    return [(path, match["spool"], int(match["segment"])) for path, match in matches if match is not None]


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)


def _header(path: Path, users: Collection[int | None]) -> dict[str, Any] | None:
    """The first line of a file, when it is one of ours, and of a user whom we believe."""
    descriptor = _open(path)
    try:
        seen = os.fstat(descriptor)
        if not stat.S_ISREG(seen.st_mode) or seen.st_uid not in (0, *users):
            return None
        text, has_end, _ = os.read(descriptor, _MOST_HEADER_BYTES).partition(b"\n")
    finally:
        os.close(descriptor)
    try:
        header = json.loads(text) if has_end else None
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) and header.get("format") == _FORMAT else None


def _read_from(path: Path, offset: int, most: int) -> bytes:
    try:
        descriptor = _open(path)
    except OSError:
        return b""
    try:
        return os.pread(descriptor, most, offset)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _user_of(pid: int) -> int | None:
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
