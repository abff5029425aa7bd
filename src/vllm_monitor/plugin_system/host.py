"""The process in which one plugin runs: a call per line of JSON comes in, an answer per line goes out.

Run as a script of its own (``python -I host.py``) with nothing but the standard library, so that it starts in some
20 ms and takes a few megabytes. It limits its memory before it loads the plugin, ends when its parent does, and has
itself killed by the kernel when a call outlasts its time, whatever the plugin is doing and whoever is left to notice.

First line: ``{"load": {...}, "timeout_seconds": 10}``, then ``{"call": "collect", "context": {...},
"timeout_seconds": 5}``. Answers: ``{"ok": ...}``, or ``{"error": "ValueError: ... (line 3)", "fatal": false}``.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import types
from contextlib import suppress
from typing import IO, Any

MOST_ANSWER_BYTES = 4 << 20
_GRACE_SECONDS = 1.0  # the parent, if it lives, ends the call first and says so


def main() -> None:
    """Load the plugin, then answer calls until the parent closes the pipe."""
    calls, answers = _own_pipes()
    module: types.ModuleType | None = None
    for line in calls:
        message = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, message["timeout_seconds"] + _GRACE_SECONDS)
        try:
            if module is None:
                module = _load(message["load"])
                answer = "null"
            else:
                answer = _encoded(getattr(module, message["call"])(message["context"]))
            reply = f'{{"ok": {answer}}}'
            fatal = False
        except BaseException as error:  # whatever a plugin raises, SystemExit included, is only its answer
            fatal = isinstance(error, MemoryError) or module is None
            reply = json.dumps({"error": _described(error, module), "fatal": fatal})
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        answers.write(reply.encode("utf-8", "backslashreplace") + b"\n")
        answers.flush()
        if fatal:
            break
    _end()


def _own_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Our ends of the pipes, out of the plugin's way: what it prints goes to stderr, and its stdin is empty."""
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return calls, answers


def _load(plugin: dict[str, Any]) -> types.ModuleType:
    sys.path[:] = plugin["path"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (plugin["memory_bytes"],) * 2)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with suppress(OSError):
        os.nice(5)
    if plugin["module"]:
        module = importlib.import_module(plugin["module"])
    else:
        module = types.ModuleType("plugin")
        module.__file__ = plugin["file_name"]
        sys.modules["plugin"] = module
        exec(compile(plugin["source"], plugin["file_name"], "exec"), module.__dict__)  # noqa: S102  # trusted by hash
    missing = [verb for verb in plugin["verbs"] if not callable(getattr(module, verb, None))]
    if missing:
        msg = f"it has no function {' or '.join(missing)}"
        raise TypeError(msg)
    return module


def _encoded(answer: Any) -> str:
    text = json.dumps(answer, default=_plain)
    if len(text) > MOST_ANSWER_BYTES:
        msg = f"it answered with {len(text)} bytes, the most is {MOST_ANSWER_BYTES}"
        raise ValueError(msg)
    return text


def _plain(value: Any) -> Any:
    """What JSON does not know: a number of numpy, or anything that can be walked (a generator, a set)."""
    item = getattr(value, "item", None)
    if callable(item):
        return item()
    return list(value)


def _described(error: BaseException, module: types.ModuleType | None) -> str:
    """The error and the line of the plugin in which it came up."""
    line, trace = None, error.__traceback__
    own = module.__file__ if module is not None else None
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name == own or name.startswith("<plugin"):
            line = trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, MemoryError):
        return f"MemoryError: it wanted more memory than it may have{'' if line is None else f' (line {line})'}"
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # an exception whose text is broken, too
        text = type(error).__name__
    return f"{text[:500]}{'' if line is None else f' (line {line})'}"


def _end() -> None:
    """End at once, with whatever the plugin has started: threads that do not stop must not keep us."""
    with suppress(OSError):
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main()
