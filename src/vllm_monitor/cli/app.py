"""Builds the command line from one thin file per group of commands, and turns errors into words."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from vllm_monitor import __version__
from vllm_monitor.cli.archives import export, import_archive
from vllm_monitor.cli.backtest import backtest
from vllm_monitor.cli.check import check
from vllm_monitor.cli.demo import demo
from vllm_monitor.cli.doctor import doctor
from vllm_monitor.cli.events import events
from vllm_monitor.cli.guardrails import guardrails
from vllm_monitor.cli.happy_paths import happy_paths
from vllm_monitor.cli.lifecycle import lifecycle
from vllm_monitor.cli.options import clean
from vllm_monitor.cli.plugins import plugins
from vllm_monitor.cli.query import query
from vllm_monitor.cli.recordings import record, replay
from vllm_monitor.cli.report import report
from vllm_monitor.cli.retention import retention
from vllm_monitor.cli.simulate import simulate
from vllm_monitor.cli.sql import sql
from vllm_monitor.cli.stored import stats, status
from vllm_monitor.cli.watch import watch
from vllm_monitor.errors import ConfigurationError, VLLMMonitorError

__all__ = ["main"]

app = typer.Typer(
    name="vllm-monitor",
    help="Watches vLLM inference servers, remembers everything, and sees the stalls that /health does not.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "watch": watch,
    "doctor": doctor,
    "status": status,
    "events": events,
    "lifecycle": lifecycle,
    "query": query,
    "sql": sql,
    "stats": stats,
    "check": check,
    "export": export,
    "import": import_archive,
    "retention": retention,
    "record": record,
    "replay": replay,
    "backtest": backtest,
    "report": report,
    "simulate": simulate,
    "demo": demo,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(guardrails, name="guardrails")
app.add_typer(happy_paths, name="happy-paths")
app.add_typer(plugins, name="plugins")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vllm-monitor {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what the monitor does to stderr.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


def main() -> None:
    """Run the command line; ends the process with 0, 1 (it failed) or 2 (it was asked for wrongly)."""
    try:
        app()
    except VLLMMonitorError as error:
        sys.stderr.write(f"error: {clean(error.message)}\n hint: {clean(error.hint)}\n")
        sys.exit(2 if isinstance(error, ConfigurationError) else 1)
    except BrokenPipeError:
        # Whoever read our output has gone (a pipe into head). Python would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        # What is ours to open and read has errors of its own; what is left is the output (a full disk).
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.stderr.write(f"error: the output cannot be written: {error}\n hint: check where it goes\n")
        sys.exit(1)
