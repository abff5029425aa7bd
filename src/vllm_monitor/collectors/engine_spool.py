"""Reads what the part inside a server has left in its spool: also what it left while nobody watched.

Files are only read, never removed: their writer keeps them within its bound. Who the lines are from is decided by their
header: by the URL that the operator gave the server, else by the server's processes, else (for one that is dead) by its
port. Files of users who are neither root, nor ours, nor the server's are left alone.

Lines have numbers, and each writer a name of its own, so that a line has an identity that lasts: how far a writer was
read is said by a number and not by a time, which somebody may set back, and what is read again can be told from news.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

from vllm_monitor.collectors.engine_header import started_note
from vllm_monitor.collectors.engine_lines import note_of, rejected_of, requests_of, samples_of
from vllm_monitor.collectors.proc_files import read_stat
from vllm_monitor.collectors.shared_engines import SharedEngines
from vllm_monitor.collectors.spool_files import Header, list_files, read_from, read_header
from vllm_monitor.collectors.targets import normalise_target
from vllm_monitor.errors import ConfigurationError
from vllm_monitor.records import EngineNote, EngineObservation, RequestSummary

__all__ = ["EngineSpool", "ReadMark", "default_spool_dir"]

_CHUNK_BYTES = 1 << 20
"""Read at once of one spool: some ten minutes of a busy server, so that a long absence is made up for bit by bit."""
_MOST_LINE_BYTES = 4 << 20
_MOST_API_SERVERS = 10_000


def default_spool_dir(user: int | None = None) -> Path:
    """Where the servers of a user leave what they saw, unless they were told of another folder."""
    return Path(tempfile.gettempdir()) / f"vllm-monitor-{os.getuid() if user is None else user}"


@dataclass(frozen=True, slots=True)
class ReadMark:
    """How far a writer was read.

    Args:
        line: The number of the last line whose news, and those of all before it, were told.
        api_server: The label that its news have.
    """

    line: int
    api_server: str = "0"


@dataclass(frozen=True, slots=True)
class _Foreign:
    """With which processes of ours a spool was found to be another's, and whether its writer lived."""

    pids: frozenset[int]
    pid: int | None
    was_alive: bool


@dataclass(slots=True)
class _Process:
    """One process that writes, and how far it was read.

    ``number`` is the last line that was taken, ``seen`` the last that was looked at, ``told`` the last that was handed
    out. ``successor`` is the header of another writer that may go on in this spool.
    """

    name: str
    writer: str
    pid: int
    api_server: str
    model: str
    owner: int
    segment: int
    offset: int = 0
    number: int = 0
    seen: int = 0
    told: int = 0
    missing: int = 0
    rest: bytes = b""
    is_skipping: bool = False
    requests: list[RequestSummary] = field(default_factory=list)
    notes: list[EngineNote] = field(default_factory=list)
    ended: bool = False
    shares_engines: bool = False
    successor: dict[str, Any] | None = None


class EngineSpool:
    """Follows the spools of one server. For one thread at a time; reads files, so not for an event loop.

    Args:
        target: The server's URL in its one form, or another name for what runs in a process of its own.
        folders: Where to look beside the default folders of the server's user and of ours.
        read: How far writers were read before, by their names (``spool`` of what they told).
        port: On which it serves; ``None`` where it serves on none.
    """

    def __init__(
        self,
        target: str,
        folders: Iterable[Path] = (),
        read: Mapping[str, ReadMark] | None = None,
        *,
        port: int | None = None,
    ) -> None:
        self.target = target
        self._port = port
        self._folders = tuple(folders)
        self._read_before = dict(read or {})
        self._users = {os.getuid()}
        self._processes: dict[str, _Process] = {}
        self._shared = SharedEngines()
        self._foreign: dict[Path, _Foreign] = {}

    def collect(self, pids: Collection[int], now: float, *, is_local: bool = True) -> list[EngineObservation]:
        """What has come since the last call, oldest first.

        Args:
            pids: The server's processes that serve its port.
            now: Unix seconds.
            is_local: Whether the server runs on this machine, so that its port names it.
        """
        # Users stay known: what a server wrote last is read when its process is gone.
        self._users |= {user for pid in pids if (user := _user_of(pid)) is not None}
        segments: dict[str, dict[int, Path]] = {}
        is_whole = True
        for folder in (*self._folders, *(default_spool_dir(user) for user in sorted(self._users))):
            try:
                files = list_files(folder)
            except OSError:
                is_whole = False
                continue
            for file in files:
                segments.setdefault(file.spool, {})[file.segment] = file.path
        found: list[EngineObservation] = []
        for spool, paths in sorted(segments.items(), key=lambda item: int(item[0].split("-")[1])):
            process = self._processes.get(spool) or self._adopt(spool, paths, pids, segments, is_local)
            if process is not None:
                found += self._read(process, paths, now)
        if is_whole:
            self._forget_all_but(segments)
        sharing = {one.api_server for one in self._processes.values() if one.shares_engines}
        found.sort(key=lambda one: one.timestamp)
        return [self._shared.judge(one) if one.api_server in sharing else one for one in found]

    def _forget_all_but(self, segments: Mapping[str, Mapping[int, Path]]) -> None:
        """Let go of spools that are not there any more; how far they were read stays known, should they come again."""
        for spool in self._processes.keys() - segments.keys():
            gone = self._processes.pop(spool)
            if gone.told:
                self._read_before[gone.writer] = ReadMark(gone.told, gone.api_server)
        listed = {path for paths in segments.values() for path in paths.values()}
        self._foreign = {path: known for path, known in self._foreign.items() if path in listed}

    def _adopt(
        self, spool: str, paths: Mapping[int, Path], pids: Collection[int], listed: Collection[str], is_local: bool
    ) -> _Process | None:
        first = min(paths)
        path = paths[first]
        foreign = self._foreign.get(path)
        if foreign is not None and foreign == _Foreign(frozenset(pids), foreign.pid, _is_alive(foreign.pid)):
            return None
        try:
            header = read_header(path, {0, *self._users})
        except OSError:
            return None
        if header is None:
            return None  # its writer has only just begun
        pid = header.values.get("pid")
        pid = pid if _is_number(pid) else None
        if not header.values or not self._is_ours(header.values, pids, is_local):
            self._foreign[path] = _Foreign(frozenset(pids), pid, _is_alive(pid))
            return None
        self._foreign.pop(path, None)
        process = self._begin(spool, first, header, listed)
        self._processes[spool] = process
        return process

    def _begin(self, spool: str, segment: int, header: Header, listed: Collection[str]) -> _Process:
        writer = _writer_of(spool, header.values)
        pid, model, count = (header.values.get(name) for name in ("pid", "model", "api_servers"))
        process = _Process(
            name=spool,
            writer=writer,
            pid=pid if _is_number(pid) else 0,
            api_server=self._label(writer, header.values, listed),
            model=model if isinstance(model, str) else "",
            owner=header.owner,
            segment=segment,
            shares_engines=_is_number(count) and count > 1,
        )
        self._go_on(process, header.values)
        return process

    def _go_on(self, process: _Process, header: Mapping[str, Any]) -> None:
        """Where an earlier look at its writer came to, or at its beginning."""
        before = self._read_before.get(process.writer)
        process.number = process.told = 0 if before is None else before.line
        started = started_note(header) if before is None else None
        if started is not None:
            process.notes.append(replace(started, note_id=f"{process.writer}:0:started"))

    def _label(self, writer: str, header: Mapping[str, Any], listed: Collection[str]) -> str:
        """Which of the API servers it is: as before, else as it says itself, else the first that nobody else has."""
        taken = {one.api_server for one in self._processes.values() if not one.ended and _is_alive(one.pid)}
        reserved = {
            mark.api_server
            for other, mark in self._read_before.items()
            if other != writer
            and _spool_of(other) in listed
            and _spool_of(other) not in self._processes
            and _is_alive(int(other.split("-")[0]))
        }
        before = self._read_before.get(writer)
        if before is not None and before.api_server not in taken:
            return before.api_server
        number = header.get("api_server")
        if _is_number_of_server(number) and str(number) not in taken:
            return str(number)
        return next(str(place) for place in range(_MOST_API_SERVERS * 2) if str(place) not in taken | reserved)

    def _is_ours(self, header: Mapping[str, Any], pids: Collection[int], is_local: bool) -> bool:
        url, pid = header.get("target_url"), header.get("pid")
        if _is_number(pid) and pid in pids:
            stat = read_stat(pid)
            if stat is not None and stat.start_ticks == header.get("process_started"):
                return True  # this very process, whatever it was told that it is called
        if isinstance(url, str) and url:
            try:
                return normalise_target(url) == self.target
            except ConfigurationError:
                return False
        if pid in pids:
            return True
        alive = _is_number(pid) and _is_alive(pid)
        return is_local and not alive and self._port is not None and header.get("port") == self._port

    def _read(self, process: _Process, paths: Mapping[int, Path], now: float) -> list[EngineObservation]:
        found: list[EngineObservation] = []
        left = _CHUNK_BYTES
        while left > 0:
            path = paths.get(process.segment)
            try:
                data = b"" if path is None else read_from(path, process.offset, left, process.owner)
            except OSError:
                break  # its rest is there the next time
            if not data:
                later = [segment for segment in paths if segment > process.segment]
                if not later:
                    break
                process.segment, process.offset = min(later), 0
                process.rest, process.is_skipping = b"", False
                continue
            left -= len(data)
            process.offset += len(data)
            *lines, process.rest = (process.rest + data).split(b"\n")
            if lines and process.is_skipping:
                del lines[0]
                process.is_skipping = False
            if len(process.rest) > _MOST_LINE_BYTES:
                process.rest, process.is_skipping = b"", True  # no line of ours is so long; its number is missing then
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
        if not isinstance(line, dict):
            return None
        if line.get("kind") == "header":
            is_another = _writer_of(process.name, line) != process.writer
            process.successor = line if is_another else None
            return None
        number, at = line.get("n"), line.get("t")
        if not _is_number(number) or not 0 < number < 10**15:
            return None
        if number <= process.seen and process.successor is not None:
            self._succeed(process, process.successor)
        process.seen = max(process.seen, number)
        if number <= process.number:
            return None
        process.missing += number - process.number - 1
        process.number = number
        if line.get("kind") == "unwritable":  # its writer could not put it into words
            process.missing += 1
            return None
        if line.get("kind") == "requests":
            process.requests += requests_of(line, self.target, process.model, f"{process.writer}-{number}")
            return None
        if line.get("kind") != "totals":
            note = note_of(line)
            if note is not None:
                process.ended = process.ended or note.kind == "end"
                process.notes.append(replace(note, note_id=f"{process.writer}:{number}:{note.kind}"))
            return None
        if not isinstance(at, int | float) or isinstance(at, bool) or not 0 < at < 1e11:
            return None
        return self._observation(process, line, min(float(at), now))

    def _succeed(self, process: _Process, header: dict[str, Any]) -> None:
        """Another writer goes on under the same name, and counts its lines from the beginning."""
        process.successor = None
        process.writer = _writer_of(process.name, header)
        pid = header.get("pid")
        process.pid = pid if _is_number(pid) else 0
        process.seen, process.missing, process.ended = 0, 0, False
        self._go_on(process, header)

    def _observation(self, process: _Process, line: dict[str, Any], at: float) -> EngineObservation:
        requests, process.requests = tuple(process.requests), []
        notes, process.notes = tuple(process.notes), []
        process.told = process.number
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
            spool=process.writer,
            line=process.number,
        )


def _is_number_of_server(value: Any) -> TypeGuard[int]:
    return _is_number(value) and 0 <= value < _MOST_API_SERVERS


def _is_number(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _writer_of(spool: str, header: Mapping[str, Any]) -> str:
    """Names a writer among all, also when two processes, in two containers say, call their spools alike."""
    at: Any = header.get("t")
    is_time = isinstance(at, int | float) and not isinstance(at, bool) and 0 < at < 1e11
    return f"{spool}-{at * 1000:.0f}" if is_time else spool


def _spool_of(writer: str) -> str:
    return "-".join(writer.split("-")[:3])


def _figure(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15
    return float(value) if is_number else 0.0


def _switch(value: Any) -> bool | None:
    return value == 1 if value in (0, 1) else None


def _user_of(pid: int) -> int | None:
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None


def _is_alive(pid: int | None) -> bool:
    return pid is not None and Path(f"/proc/{pid}").exists()
