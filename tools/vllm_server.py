"""Start, look at, freeze and end one real vLLM server, for tests and benchmarks."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from vllm_env import VllmEnvironment, server_command, server_environment

START_LIMIT_SECONDS = 400.0
PROCESS_TITLES = {"engine": "VLLM::EngineCore", "worker": "VLLM::Worker", "api_server": "VLLM::APIServer"}
LOG_TAIL_LINES = 60


class ServerStartError(RuntimeError):
    """The server did not come up; the text ends with the tail of its log."""


class VllmServer:
    """One server in a session of its own, on a free port of the loopback interface.

    Construct, :meth:`wait_ready`, use, :meth:`stop`; or use it as a context manager. Not thread-safe.

    Args:
        env: Where vLLM is installed.
        log_file: Where its output goes.
        development_routes: Offer ``/pause`` and the like.
        extra_args: Further arguments for vLLM.
        port: Where it listens; a free one unless it takes the place of another.
        plugin: Folder with the part inside the server (``vllm_env.ensure_plugin``); none by default.
        variables: Further environment variables.
        as_command: Start it as ``vllm serve`` does.
        cpus: Cores that it and all its processes may use; any by default. Its busy loops let whoever shares a core
            with them wait, for seconds when there are few cores.
    """

    def __init__(
        self,
        env: VllmEnvironment,
        log_file: Path,
        *,
        development_routes: bool = True,
        extra_args: Sequence[str] = (),
        port: int | None = None,
        plugin: Path | None = None,
        variables: Mapping[str, str] | None = None,
        as_command: bool = False,
        cpus: Collection[int] | None = None,
    ) -> None:
        self.port = _free_port() if port is None else port
        self.url = f"http://127.0.0.1:{self.port}"
        self.model = str(env.model_dir)
        self.log_file = log_file
        with log_file.open("ab") as log:
            self._process = subprocess.Popen(
                server_command(env, self.port, extra_args, as_command=as_command),
                env={
                    **server_environment(env, development_routes=development_routes, plugin=plugin),
                    **(variables or {}),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if cpus is not None:
            os.sched_setaffinity(self._process.pid, cpus)  # at once: its children inherit it

    def __enter__(self) -> Self:
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the API server."""
        return self._process.pid

    def wait_ready(self, limit_seconds: float = START_LIMIT_SECONDS) -> None:
        """Return when ``/health`` says 200.

        Raises:
            ServerStartError: When the process ended or the time was up.
        """
        deadline = time.monotonic() + limit_seconds
        while self.health_status() != 200:
            if self._process.poll() is not None:
                raise self._start_error(f"ended with status {self._process.returncode} while starting")
            if time.monotonic() > deadline:
                raise self._start_error(f"was not ready after {limit_seconds:.0f} s")
            time.sleep(0.5)

    def health_status(self, limit_seconds: float = 3.0) -> int | None:
        """What ``/health`` says; ``None`` when it does not answer."""
        try:
            return self._ask("GET", "/health", limit_seconds)[0]
        except (OSError, http.client.HTTPException):
            return None

    def get(self, path: str) -> str:
        """The body of a page; an HTTP error is raised."""
        return self._ask_well("GET", path)

    def post(self, path: str) -> str:
        """The answer to an empty POST; an HTTP error is raised."""
        return self._ask_well("POST", path)

    def process(self, role: str) -> psutil.Process:
        """The process of a role: ``api``, ``engine`` or ``worker``."""
        if role == "api":
            return psutil.Process(self.pid)
        for process in self.processes(role):
            return process
        msg = f"this server has no {role} process (any more)"
        raise LookupError(msg)

    def processes(self, role: str) -> list[psutil.Process]:
        """All its processes of a role: ``engine`` or ``worker``, or ``api_server`` where it has several."""
        return [process for process in self._session() if _title(process).startswith(PROCESS_TITLES[role])]

    def stop(self) -> None:
        """Kill everything the server started, frozen or orphaned; returns when it is gone."""
        trackers = [process for process in self._session() if "resource_tracker" in _title(process)]
        victims = [process for process in self._session() if process not in trackers]
        for process in victims:
            _kill(process)
        self._process.wait()
        psutil.wait_procs(victims, timeout=10)
        # The resource tracker removes the shared memory of the dead and then ends by itself.
        _, lingering = psutil.wait_procs(trackers, timeout=5)
        for process in lingering:
            _kill(process)

    def _session(self) -> list[psutil.Process]:
        """Every living process of the server; the session keeps orphans that have lost their parents."""
        members = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.pid:
                    members.append(process)
            except ProcessLookupError:
                continue
        return members

    def _ask(self, method: str, path: str, limit_seconds: float) -> tuple[int, str]:
        request = urllib.request.Request(self.url + path, method=method)  # noqa: S310  # our own http:// URL
        try:
            with urllib.request.urlopen(request, timeout=limit_seconds) as answer:  # noqa: S310  # likewise
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(errors="replace")

    def _ask_well(self, method: str, path: str) -> str:
        status, body = self._ask(method, path, 30.0)
        if status >= 400:
            msg = f"{method} {path} was answered with {status}: {body[:200]}"
            raise RuntimeError(msg)
        return body

    def _start_error(self, what: str) -> ServerStartError:
        lines = self.log_file.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return ServerStartError(f"vLLM {what}; the end of {self.log_file}:\n  " + "\n  ".join(lines))


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _kill(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
