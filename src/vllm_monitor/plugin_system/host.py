"""The process in which one plugin runs: a call per line of JSON comes in, an answer per line goes out.

Run as a script of its own (``python -I host.py``) with nothing but the standard library, so that it starts in some
20 ms and takes a few megabytes. It limits its memory before it loads the plugin, ends soon after its parent does, and
has itself killed by the kernel when a call outlasts its time, whatever the plugin does and whoever is left to notice.

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
import threading
import time
import types
from collections.abc import Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from typing import IO, Any

MOST_ANSWER_BYTES = 1 << 20
_LOOK_SECONDS = 0.5
_OWN_BYTES = 64 << 20
"""What the interpreter and its libraries take beside the data of the plugin."""
_GRACE_SECONDS = 1.0  # the parent, if it lives, ends the call first and says so


def main() -> None:
    """Load the plugin, then answer calls until the parent closes the pipe."""
    parent = os.getppid()
    calls, answers = _own_pipes()
    module: types.ModuleType | None = None
    config: Any = None
    for line in calls:
        message = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, message["timeout_seconds"] + _GRACE_SECONDS)
        try:
            if module is None:
                plugin = message["load"]
                threading.Thread(target=_look_after, args=(parent, plugin["memory_bytes"]), daemon=True).start()
                _limit(plugin)
                config = _checked(plugin["config"], plugin["config_schema"])
                module = _load(plugin)
                answer = "null"
            else:
                context = {**message["context"], "config": config}
                answer = _encoded(getattr(module, message["call"])(context))
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
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # ours, until the plugin changes it
    return calls, answers


def _limit(plugin: dict[str, Any]) -> None:
    sys.path[:] = plugin["path"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (plugin["memory_bytes"],) * 2)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with suppress(OSError):
        os.nice(5)


def _checked(config: dict[str, Any], schema: dict[str, Any] | None) -> dict[str, Any]:
    """The settings, with the defaults of the schema; here, because a schema may have a pattern that takes for ever."""
    if schema is None:
        return config
    from jsonschema import Draft202012Validator, SchemaError  # noqa: PLC0415  # 90 ms; only who has a schema pays them
    from jsonschema.exceptions import best_match  # noqa: PLC0415
    from referencing import Registry  # noqa: PLC0415

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ConfigError(f"its config_schema is no JSON Schema: {error.message}") from None
    properties = schema.get("properties")
    for key, wanted in properties.items() if isinstance(properties, dict) else ():
        if isinstance(wanted, dict) and "default" in wanted:
            config.setdefault(key, wanted["default"])
    # An empty registry: a schema must not make us fetch what it refers to.
    fault = best_match(Draft202012Validator(schema, registry=Registry()).iter_errors(config))
    if fault is not None:
        place = ".".join(map(str, fault.absolute_path))
        known = f"; it may have {', '.join(properties)}" if isinstance(properties, dict) else ""
        raise ConfigError(f"its config makes no sense: {f'{place}: ' if place else ''}{fault.message}{known}")
    return config


class ConfigError(ValueError):
    """Settings that do not match their schema; the text says it all."""


def _load(plugin: dict[str, Any]) -> types.ModuleType:
    if plugin["module"]:
        sys.meta_path.insert(0, _SourceOnly(plugin["module"].partition(".")[0]))
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


class _SourceOnly:
    """Imports one package from its sources: the byte code beside them is not what was trusted."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        del target
        if name.partition(".")[0] != self._package:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and type(spec.loader) is SourceFileLoader and spec.origin:
            spec.loader = _FromSource(name, spec.origin)
            spec.cached = None
        return spec


class _FromSource(SourceFileLoader):
    def get_code(self, fullname: str) -> types.CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


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
    if isinstance(error, ConfigError):
        return str(error)[:500]
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


def _look_after(parent: int, memory_bytes: int) -> None:
    """End soon after the parent has died, or when memory is taken that the limit does not know of (shared mappings)."""
    page_bytes = resource.getpagesize()
    while os.getppid() == parent:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  # pathlib costs as much as all else here
            resident_bytes = int(file.read().split()[1]) * page_bytes
        if resident_bytes > memory_bytes + _OWN_BYTES:
            os.write(2, b"it took more memory than it may have\n")
            break
        time.sleep(_LOOK_SECONDS)
    _end()


def _end() -> None:
    """End at once, with whatever the plugin has started: threads that do not stop must not keep us."""
    with suppress(OSError):
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main()
