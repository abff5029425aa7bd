"""Runs the command line: within this process where that is enough, else in one of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from vllm_monitor.cli import main

COMMAND = [sys.executable, "-m", "vllm_monitor.cli"]


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    stdout: str
    stderr: str
    exit_code: int


def run(*arguments: str | Path, check: int = 0) -> Finished:
    """Run the command line to its end within this process; fails with its output when it ends otherwise."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        mock.patch.object(sys, "argv", ["vllm-monitor", *map(str, arguments)]),
        mock.patch.dict(os.environ, {"COLUMNS": "160"}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code
    done = Finished(out.getvalue(), err.getvalue(), code if isinstance(code, int) else int(code is not None))
    assert done.exit_code == check, f"exit code {done.exit_code}\n{done.stdout}\n{done.stderr}"
    return done


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start it in a process of its own, as a user does, and go on."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def lines(text: str) -> list[dict[str, Any]]:
    """The JSON objects of an output, one per complete line."""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
