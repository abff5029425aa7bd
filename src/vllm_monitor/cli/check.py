"""``vllm-monitor check``: every checksum of the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from vllm_monitor.cli.options import BackendOption, JsonOption, StorageDirOption, clean

if TYPE_CHECKING:
    from vllm_monitor.persistence.damage.check import CheckReport

__all__ = ["check"]


def check(storage_dir: StorageDirOption = None, backend: BackendOption = None, json: JsonOption = False) -> None:
    """Verify every block, record and document of the store, while it is in use; ends with 1 when any is damaged."""
    from vllm_monitor.cli.progress import progress_bar
    from vllm_monitor.cli.stored import existing
    from vllm_monitor.persistence.damage.check import check_store

    config = existing(storage_dir, backend)
    with progress_bar("checking") as progress:
        report = check_store(config, progress=progress)
    if json:
        from dataclasses import asdict
        from json import dumps

        typer.echo(dumps(asdict(report), default=str))
    else:
        _show(report)
    if not report.ok:
        raise typer.Exit(1)


def _show(report: CheckReport) -> None:
    for finding in report.findings:
        typer.echo(clean(f"{finding.where}: {finding.name}: {finding.problem}"))
    verified = ", ".join(f"{number} {what}" for what, number in report.verified.items() if number)
    typer.echo(f"{'ok' if report.ok else f'{len(report.findings)} damaged'}: verified {verified or 'an empty store'}")
