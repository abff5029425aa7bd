"""Run ``vllm-monitor watch --json`` as an operator would, in a process of its own, and read its ticks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

SHOWN_TICKS = 25


@dataclass(frozen=True, slots=True)
class Tick:
    """One printed line.

    Args:
        seen_at: Unix seconds at which we read it.
        data: The JSON object.
    """

    seen_at: float
    data: Mapping[str, Any]

    @property
    def condition(self) -> str:
        """The condition it shows."""
        return str(self.data["condition"])

    @property
    def values(self) -> Mapping[str, float]:
        """Canonical name to number."""
        values: Mapping[str, float] = self.data["values"]
        return values


class WatchProcess:
    """A running watch. :attr:`ticks` grows from a thread; :meth:`wait_for` waits for what one shows.

    Args:
        arguments: What follows ``vllm-monitor watch`` on the command line; ``--json`` is added.
        error_file: Where its standard error goes.
    """

    def __init__(self, arguments: Sequence[str], error_file: Path) -> None:
        self.error_file = error_file
        self.ticks: list[Tick] = []
        self._news = threading.Condition()
        self._over = False
        self.started_at = time.time()
        with error_file.open("ab") as errors:
            self._process = subprocess.Popen(
                [monitor_command(), "watch", *arguments, "--json"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_operator_environment(),
                text=True,
            )
        self._reader = threading.Thread(target=self._read, name="watch-reader", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def wait_for(self, what: str, shows: Callable[[Tick], bool], limit_seconds: float, *, after: float = 0.0) -> Tick:
        """The first tick seen later than ``after`` (unix seconds) that shows something.

        Raises:
            AssertionError: When none came within ``limit_seconds`` from now, with the newest ticks.
        """
        deadline = time.monotonic() + limit_seconds
        looked_at = 0
        with self._news:
            while True:
                for tick in self.ticks[looked_at:]:
                    if tick.seen_at > after and shows(tick):
                        return tick
                looked_at = len(self.ticks)
                left = deadline - time.monotonic()
                if left <= 0 or self._over:
                    raise AssertionError(self._report(what, limit_seconds))
                self._news.wait(left)

    def kill(self) -> None:
        """End it with SIGKILL, as no program can prepare for; returns when it is gone."""
        self._process.kill()
        self._finish()

    def interrupt(self) -> int:
        """Press Ctrl-C and return the exit status."""
        self._process.send_signal(signal.SIGINT)
        return self._finish()

    def join(self) -> int:
        """Wait for its own end and return the exit status."""
        return self._finish()

    def _finish(self) -> int:
        status = self._process.wait(timeout=60)
        self._reader.join()
        return status

    def _read(self) -> None:
        stream: IO[str] | None = self._process.stdout
        if stream is None:
            return
        with stream:
            for line in stream:
                if line.endswith("\n"):  # a killed process may leave half a line, which promises nothing
                    self._take(Tick(time.time(), json.loads(line)))
        with self._news:
            self._over = True
            self._news.notify_all()

    def _take(self, tick: Tick) -> None:
        with self._news:
            self.ticks.append(tick)
            self._news.notify_all()

    def _report(self, what: str, limit_seconds: float) -> str:
        shown = [
            f"{tick.data['ts']:.1f} {tick.condition} health={tick.data['health_status']} {tick.data['reason']}"
            for tick in self.ticks[-SHOWN_TICKS:]
        ]
        errors = self.error_file.read_text(errors="replace")[-2000:]
        ending = "the watch ended" if self._over else f"nothing within {limit_seconds:.0f} s"
        return f"no tick shows {what}: {ending}. Newest ticks:\n  " + "\n  ".join([*shown, errors])


def monitor_command() -> str:
    """The console script of the environment that runs us."""
    return str(Path(sysconfig.get_path("scripts")) / "vllm-monitor")


def _operator_environment() -> dict[str, str]:
    """Our environment without settings of the monitor: what is on the command line is all there is."""
    return {name: value for name, value in os.environ.items() if not name.startswith("VLLMMON_")}


def query_metric(storage_dir: Path, metric: str, *options: str) -> Mapping[str, Any]:
    """What ``vllm-monitor query METRIC --json`` prints about a store."""
    command = [monitor_command(), "query", "--storage-dir", str(storage_dir), metric, "--json", *options]
    result = subprocess.run(
        command, capture_output=True, text=True, env=_operator_environment(), check=True, timeout=120
    )
    answer: Mapping[str, Any] = json.loads(result.stdout)
    return answer
