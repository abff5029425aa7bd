"""One plugin in a process of its own, seen from the monitor: calls with a time limit, and an end that always works."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil

from vllm_monitor.clock import SystemClock
from vllm_monitor.errors import PluginError
from vllm_monitor.plugin_system import host
from vllm_monitor.plugin_system.installed import sha256_of_package

__all__ = ["Failure", "PluginFailedError", "PluginProcess", "Program", "plain_text"]

LOAD_SECONDS = 20.0
_MOST_PRINTED_BYTES = 2_000
_MOST_CHARACTERS = 500
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
"""What every plugin sees of our environment; anything else may be a secret, and it names what it needs of that."""


class Failure(StrEnum):
    """How a call failed."""

    RAISED = "raised"
    TIMED_OUT = "timed_out"
    DIED = "died"
    MEMORY = "memory"
    BAD_ANSWER = "bad_answer"
    NOT_ASKED = "not_asked"


def plain_text(text: str) -> str:
    """What a plugin says, as one line of bounded length without anything that a terminal would obey."""
    cut = text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} ..."
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in cut
    )


class PluginFailedError(PluginError):
    """A call failed, as ``failure`` says; only after ``RAISED`` and ``NOT_ASKED`` the process is still there."""

    def __init__(self, message: str, failure: Failure) -> None:
        super().__init__(plain_text(message), hint="Mend the plugin and add it again; the monitor goes on without it.")
        self.failure = failure

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.message, self.failure)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What runs in the process.

    Args:
        name: The plugin's name, for messages.
        source: Its source; empty for a module that is installed.
        module: The module to import; empty when there is a source.
        verbs: Functions that it must have.
        memory_bytes: Most memory for its data.
        config: Its settings, JSON values.
        config_schema: JSON Schema of these, and of their defaults.
        package_sha256: Of all code of the package of ``module``; it is looked at again before it is imported.
        environment: Names of variables that it may see beside the usual ones.
    """

    name: str
    source: str
    module: str = ""
    verbs: tuple[str, ...]
    memory_bytes: int
    config: Mapping[str, Any] = field(default_factory=dict)
    config_schema: Mapping[str, Any] | None = None
    package_sha256: str = ""
    environment: tuple[str, ...] = ()


class PluginProcess:
    """A running plugin: :meth:`load`, then any number of calls.

    One caller at a time; only :meth:`kill` may come from any other thread.

    Args:
        program: What to run; its source is trusted by whoever makes this.

    Raises:
        OSError: When no process can be started now.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._owner = os.getpid()
        self._clock = SystemClock()  # a process hangs in real time, whatever clock the monitor goes by
        self._printed = b""
        self._is_closed = False
        self._answers = b""
        wanted = (*_ENVIRONMENT, *program.environment)
        self._process = subprocess.Popen(
            [sys.executable, "-I", host.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={name: os.environ[name] for name in wanted if name in os.environ} | {"OPENBLAS_NUM_THREADS": "1"},
            cwd="/",
            process_group=0,  # to be killed whole; with a session of its own its priority would not count
        )
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)

    def load(self) -> None:
        """Load the plugin.

        Raises:
            PluginFailedError: When it cannot be loaded.
        """
        program = self._program
        if program.module and sha256_of_package(program.module) != program.package_sha256:
            self.close()
            raise PluginFailedError("its package was changed since it was trusted", Failure.DIED)
        load = {
            "source": program.source,
            "module": program.module,
            "file_name": f"<plugin {program.name}>",
            "verbs": program.verbs,
            "memory_bytes": program.memory_bytes,
            "config": dict(program.config),
            "config_schema": program.config_schema,
            "path": [str(Path(entry).resolve()) for entry in sys.path if entry],
        }
        self._ask({"load": load}, LOAD_SECONDS)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def call(self, verb: str, context: Mapping[str, Any], timeout_seconds: float) -> Any:
        """What a function of the plugin answers, as JSON values.

        Args:
            verb: The function.
            context: What it is given, JSON values.
            timeout_seconds: After this long the process is killed.

        Raises:
            PluginFailedError: When it raises, takes too long, dies, or answers with what is no JSON.
        """
        return self._ask({"call": verb, "context": context}, timeout_seconds)

    def kill(self) -> None:
        """End it, with what it has started; a call that is under way then fails. From any thread."""
        if self._is_closed or os.getpid() != self._owner:  # until it is waited for, its number is not another's
            return
        for started in self._started():
            with suppress(psutil.Error):
                started.kill()
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End it, and free what it took. Calling it again does nothing; in a forked child only the pipes are closed."""
        self.kill()
        if os.getpid() == self._owner and not self._is_closed:
            self._is_closed = True
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _started(self) -> list[psutil.Process]:
        """What it has started, also in a session of its own; not what has cut its ties (a daemon)."""
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.Error:
            return []

    def _ask(self, message: dict[str, Any], timeout_seconds: float) -> Any:
        try:
            waiting = json.dumps({**message, "timeout_seconds": timeout_seconds}).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise PluginFailedError(f"what it is called with is no JSON: {error}", Failure.NOT_ASKED) from None
        try:
            line = self._exchange(waiting, self._clock.monotonic() + timeout_seconds)
        except TimeoutError:
            self.close()
            raise PluginFailedError(f"it did not answer within {timeout_seconds:g} s", Failure.TIMED_OUT) from None
        except OSError:  # a pipe that broke
            line = b""
        if not line:
            self.close()
            raise PluginFailedError(self._last_words(), Failure.DIED)
        try:
            answer = json.loads(line)
            complaint = answer.get("error")
            if complaint is None:
                return answer["ok"]
        except (ValueError, RecursionError, AttributeError, KeyError):
            self.close()  # what else is in the pipe is no longer the answer to anything
            raise PluginFailedError("its answer is no JSON", Failure.BAD_ANSWER) from None
        if answer.get("fatal"):
            self.close()
            raise PluginFailedError(str(complaint), Failure.MEMORY if "MemoryError" in str(complaint) else Failure.DIED)
        raise PluginFailedError(str(complaint), Failure.RAISED)

    def _exchange(self, waiting: bytes, deadline: float) -> bytes:
        """Send a message, and read until the answer's line is whole; empty when the process has gone."""
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        if stdin is None or stdout is None or stderr is None:
            return b""
        poll = select.poll()
        poll.register(stdin, select.POLLOUT)
        poll.register(stdout, select.POLLIN)
        poll.register(stderr, select.POLLIN)
        while True:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise TimeoutError
            for descriptor, _ in poll.poll(left * 1000):
                if descriptor == stdin.fileno():
                    waiting = waiting[os.write(descriptor, waiting) :]
                    if not waiting:
                        poll.unregister(stdin)
                    continue
                data = os.read(descriptor, 1 << 16)
                if descriptor == stderr.fileno():
                    self._printed = (self._printed + data)[-_MOST_PRINTED_BYTES:]
                    if not data:
                        poll.unregister(stderr)
                    continue
                self._answers += data
                line, newline, rest = self._answers.partition(b"\n")
                if newline:
                    self._answers = rest
                    return line
                if not data or len(self._answers) > 2 * host.MOST_ANSWER_BYTES:
                    return b""

    def _last_words(self) -> str:
        code = self._process.returncode
        printed = self._printed.decode("utf-8", "replace").strip().rpartition("\n")[2][:300]
        how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        return f"its process ended ({how}){f': {printed}' if printed else ''}"
