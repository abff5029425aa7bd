"""``vllm-monitor status`` and ``stats``: what the store knows, without watching anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vllm_monitor.cli.options import JsonOption, StorageDirOption, clean
from vllm_monitor.cli.stored_requests import requests_as_json, requests_table
from vllm_monitor.records import MetricType

if TYPE_CHECKING:
    from vllm_monitor.persistence import PersistenceConfig, PersistenceManager, StorageBackend

__all__ = ["config_of", "database_of", "existing", "open_store", "stats", "status"]


def config_of(storage_dir: Path | None, backend: StorageBackend | None, **settings: Any) -> PersistenceConfig:
    """Settings of the store in a folder; its backend is what the folder shows unless it is given."""
    from vllm_monitor.persistence import PersistenceConfig
    from vllm_monitor.persistence.backend_detection import detect_backend

    if storage_dir is not None:
        settings["storage_dir"] = storage_dir
    settings.setdefault("required", True)
    config = PersistenceConfig(**settings)
    found = backend or settings.get("backend") or detect_backend(config)
    return config if found is None else PersistenceConfig(**{**settings, "backend": found})


def database_of(config: PersistenceConfig) -> Path:
    """The file with the tables of a store."""
    from vllm_monitor.persistence.backend_detection import database_path

    return database_path(config)


def existing(storage_dir: Path | None, backend: StorageBackend | None = None, **settings: Any) -> PersistenceConfig:
    """Settings of a store that is there.

    Raises:
        ConfigurationError: When there is none: reading must not make one.
    """
    from vllm_monitor.errors import ConfigurationError

    config = config_of(storage_dir, backend, **settings)
    path = database_of(config)
    if not path.exists():
        raise ConfigurationError(
            f"there is no store at {path}",
            hint="name the folder that vllm-monitor watch writes to with --storage-dir",
        )
    return config


@contextmanager
def open_store(storage_dir: Path | None, backend: StorageBackend | None = None) -> Iterator[PersistenceManager]:
    """The store in a folder, for reading: nothing is sealed or deleted by itself meanwhile.

    Raises:
        ConfigurationError: When there is none.
    """
    from vllm_monitor.persistence import PersistenceManager

    store = PersistenceManager(existing(storage_dir, backend), synchronous=True)
    try:
        yield store
    finally:
        store.close()


def status(storage_dir: StorageDirOption = None, json: JsonOption = False) -> None:
    """Show how every target was when it was last looked at."""
    from vllm_monitor.clock import SystemClock

    now = SystemClock().now()
    with open_store(storage_dir) as store:
        targets = [_target_status(store, target, now) for target in store.list_targets() if target]
    if json:
        from json import dumps

        typer.echo(dumps({"targets": targets}))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if not targets:
        console.print("the store has seen no server yet")
        return
    table = Table()
    for name in ("target", "condition", "state", "since", "last page", "alerts", "predicted", "reason"):
        table.add_column(name, overflow="fold")
    for entry in targets:
        table.add_row(
            *(escape(clean(str(entry[key] or "-"))) for key in ("target", "condition", "state")),
            _ago(entry["since"], now),
            _ago(entry["last_page_at"], now),
            escape(clean("\n".join(f"{one['name']} ({_ago(one['since'], now)})" for one in entry["alerts"]) or "-")),
            escape(clean("\n".join(map(_expected, entry["predictions"])) or "-")),
            escape(clean("\n".join(filter(None, (entry["reason"], _engine_words(entry["engine"])))) or "-")),
        )
    console.print(table)
    requests = requests_table(targets)
    if requests is not None:
        console.print(requests)


def _target_status(store: PersistenceManager, target: str, now: float) -> dict[str, Any]:
    from vllm_monitor.core import alert_as_json, prediction_as_json
    from vllm_monitor.lifecycle_tracker import ENGINE_KEY, condition_since

    checkpoints = store.get_checkpoints(limit=1, target=target)
    last = checkpoints[0] if checkpoints else None
    samples = store.latest(target=target)
    page_times = [sample["timestamp"] for sample in samples if sample["metric_type"] == MetricType.PERFORMANCE]
    return {
        "target": target,
        "condition": last.condition.value if last is not None and last.condition is not None else None,
        "state": last.state.value if last is not None else None,
        "reason": last.reason if last is not None else None,
        "since": condition_since(last) if last is not None else None,
        "engine": last.metadata.get(ENGINE_KEY) if last is not None else None,
        "last_page_at": max(page_times, default=None),
        "requests": requests_as_json(store, target, now),
        "alerts": [alert_as_json(alert) for alert in store.get_alerts(state="firing", limit=None, target=target)],
        "predictions": [
            prediction_as_json(one) for one in store.get_predictions(limit=None, target=target, outcome="open")[::-1]
        ],
    }


def _engine_words(engine: dict[str, Any] | None) -> str:
    """What the part inside the server told of its engine, in short."""
    known = engine if isinstance(engine, dict) else {}
    tokens, fingerprint = known.get("kv_capacity_tokens"), known.get("config_fingerprint")
    words = [] if tokens is None else [f"KV cache of {tokens} tokens"]
    words += [] if fingerprint is None else [f"configuration {str(fingerprint)[:12]}"]
    return ", ".join(words)


def _expected(prediction: dict[str, Any]) -> str:
    sure = "" if prediction["calibrated"] else " uncalibrated"
    return f"{prediction['failure_type']} {prediction['probability']:.0%}{sure}"


def _ago(timestamp: float | None, now: float) -> str:
    from vllm_monitor.terminal.format import duration

    return "-" if timestamp is None else f"{duration(max(0.0, now - timestamp))} ago"


def _readable(name: str, value: Any) -> str:
    from vllm_monitor.terminal.format import byte_count, iso_time

    if value is None or value == "" or value == [] or value == {}:
        return "-"
    if name in ("oldest", "newest", "last_flush", "last_run"):
        return iso_time(value)
    if name == "bytes":
        return f"{byte_count(value)} ({value:,})"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def stats(storage_dir: StorageDirOption = None, json: JsonOption = False) -> None:
    """Show what the store holds: records, bytes, oldest and newest."""
    with open_store(storage_dir) as store:
        statistics = store.get_statistics()
    if json:
        from json import dumps

        typer.echo(dumps(statistics, default=str))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("what", "value")
    for name, value in statistics.items():
        if isinstance(value, dict):
            for key, inner in value.items():
                table.add_row(escape(clean(f"{name}: {key}")), escape(clean(_readable(key, inner))))
        else:
            table.add_row(escape(name), escape(clean(_readable(name, value))))
    Console().print(table)
