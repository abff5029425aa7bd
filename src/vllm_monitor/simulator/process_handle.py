"""A simulated server as a child process, for demonstrations and tests."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable
from types import TracebackType
from typing import IO, Self

from vllm_monitor.clock import SystemClock
from vllm_monitor.errors import ConfigurationError, TargetUnreachableError
from vllm_monitor.simulator.faults import Fault

__all__ = ["SimulatorProcess"]

_STOP_SECONDS = 5.0
_PROBE_SECONDS = 0.05


class SimulatorProcess:
    """Starts ``python -m vllm_monitor.simulator`` and ends it reliably; a context manager.

    The child also ends by itself when this process dies, however it dies.

    Attributes:
        url: Where it listens, known once entered.
        pid: Its process id, known once entered.

    Args:
        port: Port; 0 for any free one.
        seed: Seed of all randomness.
        faults: Faults, as records or as written on the command line.
        rate: Background requests per simulated second.
        speed: Simulated seconds per second.
        model: Name of the served model.
        dev_mode: Serve the development routes.
        api_key: Bearer token that guards ``/v1``.
        track_load: Let ``/load`` count requests.
        restart_seconds: How long a crashed server stays away.
        no_restart: A crashed server stays away for ever.
        client_timeout: Background clients hang up after so many simulated seconds.
        wait_until_serving: Whether entering waits for ``/health`` to say 200; without, it returns as soon as
            the process has its port, which is what a test of a slow start wants.
        start_timeout_seconds: Entering fails after this long.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        seed: int = 0,
        faults: Iterable[Fault | str] = (),
        rate: float = 2.0,
        speed: float = 1.0,
        model: str = "simulated",
        dev_mode: bool = False,
        api_key: str | None = None,
        track_load: bool = False,
        restart_seconds: float = 30.0,
        no_restart: bool = False,
        client_timeout: float = 30.0,
        wait_until_serving: bool = True,
        start_timeout_seconds: float = 30.0,
    ) -> None:
        options = {
            "port": port,
            "seed": seed,
            "rate": rate,
            "speed": speed,
            "model": model,
            "restart-seconds": restart_seconds,
            "client-timeout": client_timeout,
        }
        flags = {"--dev-mode": dev_mode, "--track-load": track_load, "--no-restart": no_restart}
        self._arguments = [f"--{name}={value}" for name, value in options.items()]
        self._arguments += [f"--fault={fault}" for fault in faults]
        self._arguments += [name for name, is_set in flags.items() if is_set]
        if api_key is not None:
            self._arguments.append(f"--api-key={api_key}")
        self._wait_until_serving = wait_until_serving
        self._start_timeout_seconds = start_timeout_seconds
        self._clock = SystemClock()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.pid = 0

    def __enter__(self) -> Self:
        deadline = self._clock.monotonic() + self._start_timeout_seconds
        reader, writer = os.pipe()
        with tempfile.TemporaryFile() as complaints, os.fdopen(reader, "rb") as announcements:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-m", "vllm_monitor.simulator", "--end-with-stdin", *self._arguments],
                    stdin=subprocess.PIPE,
                    stdout=writer,
                    stderr=complaints,
                )
            finally:
                os.close(writer)
            self._process = process
            self.pid = process.pid
            try:
                found = re.search(r"http://\S+", _first_line(announcements, self._start_timeout_seconds))
                if found is None:
                    complaints.seek(0)
                    said = complaints.read().decode(errors="replace").strip()
                    raise ConfigurationError(
                        f"the simulator did not start: {said or 'it said nothing'}",
                        hint="Run `python -m vllm_monitor.simulator` with the same options by hand.",
                    )
                self.url = found.group()
                if self._wait_until_serving:
                    self._await_health(process, deadline)
            except BaseException:
                self.stop()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def exit_code(self) -> int | None:
        """Exit code of the process; ``None`` while it runs."""
        return None if self._process is None else self._process.poll()

    def stop(self) -> None:
        """End the process: SIGTERM, and SIGKILL when that does not help. May be called again."""
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def _await_health(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        while not self._is_healthy():
            if self._clock.monotonic() > deadline or process.poll() is not None:
                raise TargetUnreachableError(
                    f"the simulator at {self.url} did not become healthy",
                    hint="Give it a longer start time-out, or wait_until_serving=False.",
                )
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PROBE_SECONDS)

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=1.0) as answer:  # noqa: S310  # our own http URL
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def _first_line(pipe: IO[bytes], timeout_seconds: float) -> str:
    """The announcement, or what came of it when the process ended or time ran out."""
    clock = SystemClock()
    deadline = clock.monotonic() + timeout_seconds
    text = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while not text.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - clock.monotonic())):
                break
            piece = os.read(pipe.fileno(), 4096)
            if not piece:
                break
            text += piece
    return text.decode(errors="replace")
