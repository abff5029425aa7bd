"""``vllm-monitor guardrails``: which there are, switching them, adding one, and when it would have fired."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_monitor.cli.options import BackendOption, JsonOption, LastOption, StorageDirOption, clean, parse_duration
from vllm_monitor.errors import ConfigurationError
from vllm_monitor.records import GuardrailPolicy, Severity

if TYPE_CHECKING:
    from vllm_monitor.guardrails import Guardrails, Registered
    from vllm_monitor.persistence import PersistenceManager
    from vllm_monitor.records import Alert

__all__ = ["guardrails"]

guardrails = typer.Typer(
    no_args_is_help=True, help="Conditions that must not be met: list, switch, add, try.", add_completion=False
)
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The guardrail.")]
ConditionOption = Annotated[
    str | None,
    typer.Option("--condition", help="For example 'requests_waiting > 50.0 for 1m'.", show_default=False),
]


@contextmanager
def _opened(storage_dir: Path | None, backend: Any) -> Iterator[tuple[PersistenceManager, Guardrails]]:
    from vllm_monitor.cli.stored import config_of
    from vllm_monitor.guardrails import Guardrails
    from vllm_monitor.persistence import PersistenceManager

    with PersistenceManager(config_of(storage_dir, backend), synchronous=True) as store:
        yield store, Guardrails(store)


@guardrails.command("list")
def list_all(storage_dir: StorageDirOption = None, backend: BackendOption = None, json: JsonOption = False) -> None:
    """Show every guardrail: those of the package and your own."""
    with _opened(storage_dir, backend) as (_, known):
        entries = [_entry(one) for one in known.all()]
    if json:
        from json import dumps

        for entry in entries:
            typer.echo(dumps(entry, default=str))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("name", "on", "severity", "condition", "description")
    for entry in entries:
        state = "problem" if entry["problem"] else "on" if entry["enabled"] else "off"
        words = entry["problem"] or entry["description"]
        row = (entry["name"], state, entry["severity"], entry["condition"], words)
        table.add_row(*(escape(clean(str(cell))) for cell in row))
    Console().print(table)


def _entry(one: Registered) -> dict[str, Any]:
    policy = one.policy
    return {
        "name": policy.name,
        "enabled": policy.enabled,
        "built_in": one.is_built_in,
        "severity": policy.severity,
        "condition": policy.condition,
        "intervention": policy.intervention,
        "description": policy.description,
        "runbook": policy.metadata.get("runbook"),
        "problem": one.problem,
    }


@guardrails.command("enable")
def enable(name: NameArgument, storage_dir: StorageDirOption = None, backend: BackendOption = None) -> None:
    """Switch a guardrail on; a running watch takes it up within half a minute."""
    with _opened(storage_dir, backend) as (_, known):
        known.enable(name)
    typer.echo(f"{name} is on")


@guardrails.command("disable")
def disable(name: NameArgument, storage_dir: StorageDirOption = None, backend: BackendOption = None) -> None:
    """Switch a guardrail off; an alert of it that fires is resolved."""
    with _opened(storage_dir, backend) as (_, known):
        known.enable(name, enabled=False)
    typer.echo(f"{name} is off")


@guardrails.command("add")
def add(
    name: NameArgument,
    condition: ConditionOption = None,
    description: Annotated[str, typer.Option("--description", help="One sentence that its alert says.")] = "",
    severity: Annotated[Severity, typer.Option("--severity", help="How loudly to say it.")] = Severity.WARNING,
    intervention: Annotated[
        str | None, typer.Option("--intervention", help="The strategy it asks for.", show_default=False)
    ] = None,
    storage_dir: StorageDirOption = None,
    backend: BackendOption = None,
) -> None:
    """Add a guardrail of your own, or replace the one of that name."""
    policy = _given(name, condition, description, severity, intervention)
    with _opened(storage_dir, backend) as (_, known):
        known.register(policy)
    typer.echo(f"{name} is on: {policy.condition}")


@guardrails.command("remove")
def remove(name: NameArgument, storage_dir: StorageDirOption = None, backend: BackendOption = None) -> None:
    """Delete a guardrail of your own."""
    with _opened(storage_dir, backend) as (_, known):
        known.remove(name)
    typer.echo(f"{name} is gone")


@guardrails.command("test")
def try_out(
    name: NameArgument,
    recordings: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE...", help="Recordings (default: what the store holds).", show_default=False),
    ] = None,
    condition: ConditionOption = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Only this server (default: all).", show_default=False)
    ] = None,
    last: LastOption = "24h",
    storage_dir: StorageDirOption = None,
    backend: BackendOption = None,
    json: JsonOption = False,
) -> None:
    """Say when a guardrail would have fired; with --condition one that there is not yet."""
    from vllm_monitor.cli.query import normalised
    from vllm_monitor.cli.stored import existing
    from vllm_monitor.clock import SystemClock
    from vllm_monitor.collectors import read_recording
    from vllm_monitor.core.backtest import fired_in_recording, fired_in_store
    from vllm_monitor.guardrails import Guardrails
    from vllm_monitor.persistence import PersistenceManager

    if recordings:
        policy = Guardrails().get(name).policy if condition is None else _given(name, condition)
        for path in recordings:
            _show(path.name, list(fired_in_recording(policy, read_recording(path))), as_json=json)
        return
    with PersistenceManager(existing(storage_dir, backend), synchronous=True) as store:
        policy = Guardrails(store).get(name).policy if condition is None else _given(name, condition)
        end = SystemClock().now()
        start = end - parse_duration(last)
        wanted = normalised(target)
        for url in [one for one in store.list_targets() if one and wanted in (None, one)]:
            _show(url, list(fired_in_store(policy, store, url, start, end)), as_json=json)


@guardrails.command("export")
def export(
    output: Annotated[
        Path | None, typer.Option("--output", help="Write it to this file (default: print it).", show_default=False)
    ] = None,
    storage_dir: StorageDirOption = None,
    backend: BackendOption = None,
) -> None:
    """Write the guardrails as a rules file of Prometheus, as far as a page of vLLM can say them."""
    from vllm_monitor.guardrails import prometheus_rules

    with _opened(storage_dir, backend) as (_, known):
        rules = prometheus_rules([one.policy for one in known.all()])
    if output is None:
        typer.echo(rules.text, nl=False)
    else:
        output.write_text(rules.text, encoding="utf-8")
        typer.echo(
            f"{len(rules.exported)} rules are in {output}; {len(rules.left_out)} cannot be said there (see its head)"
        )


def _given(
    name: str,
    condition: str | None,
    description: str = "",
    severity: Severity = Severity.WARNING,
    intervention: str | None = None,
) -> GuardrailPolicy:
    from vllm_monitor.guardrails import CompiledCondition

    if condition is None:
        raise ConfigurationError(
            "a guardrail needs a condition", hint="give --condition 'requests_waiting > 50.0 for 1m'"
        )
    CompiledCondition(condition)  # before a store is opened for it
    return GuardrailPolicy(name, description or name, condition, intervention, severity.value)


def _show(source: str, alerts: list[Alert], *, as_json: bool) -> None:
    from vllm_monitor.terminal.format import duration, iso_time

    ends = {alert.alert_id: alert.resolved_at for alert in alerts if alert.resolved_at is not None}
    fired = [alert for alert in alerts if alert.resolved_at is None]
    if as_json:
        from json import dumps

        for alert in fired:
            entry = {
                "source": source,
                "name": alert.name,
                "since": alert.timestamp,
                "fired_at": alert.fired_at,
                "resolved_at": ends.get(alert.alert_id),
                "message": alert.message,
            }
            typer.echo(dumps(entry))
        return
    if not fired:
        typer.echo(f"{clean(source)}: it would not have fired")
    for alert in fired:
        end = ends.get(alert.alert_id)
        lasted = "it still would" if end is None else f"for {duration(end - (alert.fired_at or end))}"
        typer.echo(f"{clean(source)}: {iso_time(alert.fired_at)} {lasted}: {clean(alert.message)}")
    sys.stdout.flush()
