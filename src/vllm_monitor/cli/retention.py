"""``vllm-monitor retention``: delete now what is too old."""

from __future__ import annotations

import math
import sys
from typing import Annotated, Any

import typer

from vllm_monitor.cli.options import BackendOption, JsonOption, StorageDirOption
from vllm_monitor.errors import ConfigurationError

__all__ = ["retention"]

LEAST_BYTES = 1 << 20


def retention(
    storage_dir: StorageDirOption = None,
    backend: BackendOption = None,
    metrics_days: Annotated[float, typer.Option("--metrics-days", help="Keep raw samples for this many days.")] = 30,
    checkpoints_days: Annotated[
        float, typer.Option("--checkpoints-days", help="Keep checkpoints for this many days.")
    ] = 90,
    predictions_days: Annotated[
        float, typer.Option("--predictions-days", help="Keep predictions for this many days.")
    ] = 60,
    max_bytes: Annotated[
        int | None,
        typer.Option("--max-bytes", help="Delete the oldest samples until the store fits.", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: JsonOption = False,
) -> None:
    """Delete what is older than this, and shrink the file. A running watch does it by itself."""
    from vllm_monitor.cli.stored import existing
    from vllm_monitor.persistence import PersistenceManager

    options = {
        "--metrics-days": metrics_days,
        "--checkpoints-days": checkpoints_days,
        "--predictions-days": predictions_days,
    }
    for option, days in options.items():
        if not 0 < days < math.inf:
            raise ConfigurationError(f"{option} {days:g} makes no sense", hint="give a number of days above 0")
    if max_bytes is not None and max_bytes < LEAST_BYTES:
        raise ConfigurationError(f"--max-bytes {max_bytes} is too little", hint=f"give at least {LEAST_BYTES}")
    limits: dict[str, Any] = {
        "metrics_retention_days": metrics_days,
        "checkpoint_retention_days": checkpoints_days,
        "prediction_retention_days": predictions_days,
        "max_bytes": max_bytes,
        "required": True,
    }
    config = existing(storage_dir, backend, **limits)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigurationError("nobody is there to ask", hint="add --yes to delete without asking")
        limits_text = f"samples older than {metrics_days:g} days, checkpoints {checkpoints_days:g}, predictions "
        typer.confirm(f"{config.storage_dir}: delete {limits_text}{predictions_days:g}?", abort=True)
    with PersistenceManager(config, synchronous=True) as store:
        before = store.get_statistics()["bytes"]
        if max_bytes is not None:
            store.run_maintenance(seal_all=True)  # what is sealed takes least room, and only that is deleted for size
        deleted = store.cleanup_old_data()
        after = store.get_statistics()["bytes"]
    if json:
        from json import dumps

        typer.echo(dumps({"deleted": deleted, "bytes_before": before, "bytes_after": after}))
        return
    words = ", ".join(f"{number} {what}" for what, number in deleted.items() if number)
    typer.echo(f"deleted {words or 'nothing'}; {before:,} bytes before, {after:,} after")
