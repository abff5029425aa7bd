"""``vllm-monitor doctor``: is this machine, and this command, fit to start a server?"""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_monitor.cli.options import JsonOption, StorageDirOption, clean

if TYPE_CHECKING:
    from vllm_monitor.doctor import Finding, FixResult, Subject

__all__ = ["doctor"]

_COLOURS = {"problem": "red", "warning": "yellow", "unknown": "magenta", "note": "cyan"}
_INDENT = 10
_LEAST_WIDTH = 60


def doctor(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND", help="After --: the command that you will run.", show_default=False),
    ] = None,
    python: Annotated[
        Path | None,
        typer.Option(
            "--python", help="Interpreter of vLLM's environment (default: the command's).", show_default=False
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", help="Port it will serve on (default: the command's).", show_default=False)
    ] = None,
    storage_dir: StorageDirOption = None,
    json: JsonOption = False,
    fix: Annotated[bool, typer.Option("--fix", help="Do what is safe; it is listed first.")] = False,
) -> None:
    """Check this machine, vLLM's environment and the command before the start; ends with 1 on a problem."""
    from vllm_monitor.doctor import Level, apply_fixes, examine, fixes_of, worst_of

    subject = _subject(command or [], python, port, storage_dir)
    findings = examine(subject)
    results: list[tuple[Finding, FixResult]] = []
    if fix and fixes_of(findings):
        for one, planned in fixes_of(findings):
            typer.echo(clean(f"{one.check}: will {planned.what}"), err=json)
        results = apply_fixes(findings)
        for one, result in results:
            typer.echo(clean(f"{one.check}: {result.text}{'' if result.done else ' (not done)'}"), err=json)
        findings = examine(subject)
    if json:
        from json import dumps

        typer.echo(dumps(_document(findings, results), default=str))
    else:
        _show(findings, is_with_command=subject.launch is not None)
    if worst_of(findings) is Level.PROBLEM:
        raise typer.Exit(1)


def _subject(command: list[str], python: Path | None, port: int | None, storage_dir: Path | None) -> Subject:
    from vllm_monitor.collectors.server_command import DEFAULT_PORT
    from vllm_monitor.doctor import Subject, default_interpreter, look_into, parse_launch

    launch = parse_launch(command, os.environ) if command else None
    environment = {**os.environ, **(launch.variables if launch is not None else {})}
    interpreter = python or (launch.interpreter if launch is not None else None) or default_interpreter(environment)
    folder, paths = _happy_paths(storage_dir)
    return Subject(
        launch,
        environment,
        look_into(interpreter, environment),
        port=port if port is not None else launch.port if launch is not None else DEFAULT_PORT,
        storage_dir=folder,
        happy_paths=paths,
    )


def _happy_paths(storage_dir: Path | None) -> tuple[Path | None, Any]:
    """The folder of the store, and its happy paths; none when there is no store: looking changes nothing."""
    from vllm_monitor.cli.stored import config_of, database_of
    from vllm_monitor.errors import StorageError, StoreUnavailableError
    from vllm_monitor.persistence.records.stored_happy_paths import read_happy_paths

    folder = storage_dir
    try:
        config = config_of(storage_dir, None)
        folder = config.storage_dir
        return folder, read_happy_paths(config) if database_of(config).exists() else []
    except StorageError as error:
        return folder, error
    except OSError as error:
        hint = "Name its folder with --storage-dir, or look as the user that may."
        return folder, StoreUnavailableError(f"the store cannot be looked at: {error.strerror}", hint=hint)


def _document(findings: list[Finding], results: list[tuple[Finding, FixResult]]) -> dict[str, Any]:
    from vllm_monitor.doctor import fixes_of, worst_of

    done = [
        {"check": one.check, "what": one.fix.what if one.fix else "", "done": result.done, "result": result.text}
        for one, result in results
    ]
    possible = [
        {"check": one.check, "what": planned.what, "done": None, "result": None} for one, planned in fixes_of(findings)
    ]
    return {
        "worst": worst_of(findings).value,
        "findings": [
            {
                "check": one.check,
                "level": one.level.value,
                "message": one.message,
                "advice": one.advice,
                "fix": one.fix.what if one.fix else None,
                "data": dict(one.data),
            }
            for one in findings
        ],
        "fixes": [*done, *possible],
    }


def _show(findings: list[Finding], *, is_with_command: bool) -> None:
    from vllm_monitor.doctor import Level

    for one in findings:
        if one.level is not Level.OK:
            _paragraph(one)
    # A check that has found something bad is not fine, even if a part of it is.
    bad = {one.check for one in findings if one.level.weight > Level.NOTE.weight}
    fine = dict.fromkeys(one.check for one in findings if one.level is Level.OK and one.check not in bad)
    typer.secho(f"{'ok':<{_INDENT}}", fg="green", nl=False)
    _wrapped(", ".join(fine) or "nothing")
    numbers = {level.value: sum(one.level is level for one in findings) for level in reversed(Level)}
    counted = ", ".join(
        f"{numbers[level]} {word}{'s' if numbers[level] > 1 and level != 'unknown' else ''}"
        for level, word in (("problem", "problem"), ("warning", "warning"), ("unknown", "not looked at"))
        if numbers[level]
    )
    verdict = "do not start yet" if numbers["problem"] else "nothing stands against a start"
    typer.echo(f"{verdict}: {counted}" if counted else verdict)
    if not is_with_command:
        typer.echo("only the machine was looked at; for the command too: vllm-monitor doctor -- vllm serve MODEL ...")


def _paragraph(finding: Finding) -> None:
    """What is the case and what to do: on lines of their own, but for a mere note."""
    from vllm_monitor.doctor import Level

    level = finding.level.value
    said, advice = f"{finding.check}: {finding.message}", f"-> {finding.advice}" if finding.advice else ""
    label = level.upper() if finding.level is Level.PROBLEM else level
    typer.secho(f"{label:<{_INDENT}}", fg=_COLOURS[level], nl=False)
    if finding.level is Level.NOTE:
        _wrapped(f"{said} {advice}".rstrip())
        return
    _wrapped(said)
    if advice:
        typer.echo(" " * _INDENT, nl=False)
        _wrapped(advice)


def _wrapped(text: str) -> None:
    """Print a text that begins after the label, on as many lines as it takes; names and paths stay whole."""
    width = max(_LEAST_WIDTH, get_terminal_size((120, 24)).columns) - _INDENT
    lines = textwrap.wrap(clean(text), width, break_long_words=False, break_on_hyphens=False)
    typer.echo(f"\n{'':<{_INDENT}}".join(lines))
