"""``vllm-monitor record`` and ``replay``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_monitor.cli.options import (
    ApiKeyOption,
    CaFileOption,
    CanaryOption,
    DurationOption,
    InsecureOption,
    IntervalOption,
    JsonOption,
    LogFileOption,
    TemporaryUnlessGivenOption,
    check_duration,
    clean,
    make_config,
    stop_on_signals,
)

if TYPE_CHECKING:
    from rich.console import Console

    from vllm_monitor.core import ReplayReport
    from vllm_monitor.persistence import PersistenceManager

__all__ = ["record", "replay", "temporary_store"]


def record(
    url: Annotated[str, typer.Argument(metavar="URL", help="The server to record.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write; .gz compresses it.")],
    duration: DurationOption = None,
    interval: IntervalOption = None,
    api_key: ApiKeyOption = None,
    log_file: LogFileOption = None,
    canary: CanaryOption = None,
    ca_file: CaFileOption = None,
    insecure: InsecureOption = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
) -> None:
    """Record what a server shows, to be replayed later. Ctrl-C ends it."""
    from vllm_monitor.clock import SystemClock
    from vllm_monitor.collectors import RecordingWriter
    from vllm_monitor.core import VLLMMonitor
    from vllm_monitor.errors import RecordingError

    check_duration(duration)
    config = make_config(
        None,
        targets=(),
        interval_seconds=interval,
        api_key=api_key,
        canary=canary,
        ca_file=ca_file,
        insecure=insecure,
    )
    monitor = VLLMMonitor(config, enable_persistence=False)
    target = monitor.add_target(url, log_file=log_file)
    counted = 0
    fault: RecordingError | None = None
    started_at = SystemClock().now()
    with RecordingWriter(
        output, target=target, started_at=started_at, interval_seconds=config.interval_seconds, overwrite=force
    ) as writer:

        def write(observation: Any) -> None:
            nonlocal counted, fault
            try:
                writer.write(observation)
                counted += 1
            except RecordingError as error:
                fault = error
                monitor.request_stop()

        monitor.add_observer(write)
        with stop_on_signals(monitor.request_stop):
            monitor.run(duration)
    if fault is not None:
        raise fault
    typer.echo(f"{counted} observations of {target} written to {output}")


def replay(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recordings to replay.")],
    storage_dir: TemporaryUnlessGivenOption = None,
    interval: Annotated[
        float | None,
        typer.Option(
            "--interval", help="Seconds between two ticks (default: that of the recording).", show_default=False
        ),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Score predictions against what was injected and what clients met.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Replay recordings through the same judgement as a live watch, faster than real time."""
    from json import dumps

    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    from vllm_monitor.cli.replay_report import print_report, print_summary
    from vllm_monitor.collectors import LEAST_INTERVAL_SECONDS, MOST_INTERVAL_SECONDS, read_recording
    from vllm_monitor.core import RecordingReport, ReplayReport, count_ticks, replay_ticks
    from vllm_monitor.errors import ConfigurationError
    from vllm_monitor.predictive_failure_detection import PredictiveFailureDetector

    if interval is not None and not LEAST_INTERVAL_SECONDS <= interval <= MOST_INTERVAL_SECONDS:
        hint = f"give {LEAST_INTERVAL_SECONDS:g} to {MOST_INTERVAL_SECONDS:g} seconds"
        raise ConfigurationError(f"--interval {interval} makes no sense", hint=hint)
    console = Console()
    scores: list[RecordingReport] = []
    with temporary_store(storage_dir) as store:
        for path in files:
            recording = read_recording(path)
            name = path.name.removesuffix(".gz").removesuffix(".jsonl")
            told, score = ReplayReport(name), RecordingReport(name, recording.truth)
            ticks = replay_ticks(
                recording, store=store, interval_seconds=interval, predictor=PredictiveFailureDetector()
            )
            total = count_ticks(recording, interval)
            bar = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
            with bar:
                for tick in bar.track(ticks, total=total, description=escape(clean(name))):
                    told.add(tick)
                    score.add(tick)
            if recording.malformed_lines:
                typer.echo(f"{path}: {recording.malformed_lines} lines could not be read and were skipped", err=True)
            for note in recording.notes:
                typer.echo(f"{path}: {clean(note)}", err=True)
            scores.append(score)
            if json:
                typer.echo(dumps((score if report else told).as_json(), separators=(",", ":")))
            elif report:
                print_report(console, score)
            else:
                _print_timeline(console, told)
    if report and not json and len(scores) > 1:
        print_summary(console, scores)


def _print_timeline(console: Console, told: ReplayReport) -> None:
    """Changes of condition, alerts and predictions in the order of their times."""
    from operator import itemgetter

    from rich.markup import escape

    console.print(f"[bold]{escape(clean(told.recording))}[/bold]: {told.ticks} ticks")
    lines = [(entry["ts"], entry["condition"], entry["reason"]) for entry in told.timeline]
    for alert in told.alerts:
        words = f"{alert['name']} {alert['state']} ({alert['severity']}): {alert['message']}"
        lines.append((alert["ts"], "alert", words))
    for one in told.predictions:
        words = f"{one['failure_type']} {one['probability']:.0%}, expected in {one['time_to_failure']:.0f} s"
        lines.append((one["ts"], "predicted", words))
    for at, what, words in sorted(lines, key=itemgetter(0)):
        seconds = at - told.timeline[0]["ts"]
        console.print(f"  {seconds:8.1f} s  {what:<12} {escape(clean(words))}", soft_wrap=True)


@contextmanager
def temporary_store(storage_dir: Path | None) -> Iterator[PersistenceManager]:
    """The store in ``storage_dir``, or one that is gone afterwards."""
    from vllm_monitor.cli.stored import config_of
    from vllm_monitor.persistence import PersistenceManager

    with tempfile.TemporaryDirectory(prefix="vllm-monitor-") as folder:
        store = PersistenceManager(config_of(storage_dir or Path(folder) / "store", None, required=False))
        try:
            yield store
        finally:
            store.close()
