"""``vllm-monitor backtest``: what predictions were, and would have been, worth over stored history."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_monitor.cli.options import (
    BackendOption,
    JsonOption,
    OneTargetOption,
    StorageDirOption,
    clean,
    parse_duration,
)
from vllm_monitor.errors import ConfigurationError

if TYPE_CHECKING:
    from vllm_monitor.core.prediction_backtest import BacktestScore

__all__ = ["backtest"]

LEAST_DAYS = 0.25
"""From fewer, false alarms a day cannot be told."""


def backtest(
    storage_dir: StorageDirOption = None,
    since: Annotated[str, typer.Option("--since", help="How far back, for example 15m, 12h or 7d.")] = "24h",
    target: OneTargetOption = None,
    least_probability: Annotated[
        float | None,
        typer.Option("--least-probability", help="Try this threshold instead, 0 to 1.", show_default=False),
    ] = None,
    hold_down: Annotated[
        float | None,
        typer.Option("--hold-down", help="Try so many seconds between two of a type.", show_default=False),
    ] = None,
    daily_budget: Annotated[
        int | None, typer.Option("--daily-budget", help="Try this many predictions a day.", show_default=False)
    ] = None,
    backend: BackendOption = None,
    json: JsonOption = False,
) -> None:
    """Replay stored history through the predictor; with another setting, say what it would have done."""
    from rich.console import Console
    from rich.progress import Progress

    from vllm_monitor.cli.query import normalised
    from vllm_monitor.cli.stored import open_store
    from vllm_monitor.clock import SystemClock
    from vllm_monitor.core.prediction_backtest import backtest_predictions, stored_score
    from vllm_monitor.predictive_failure_detection import PredictionSettings

    usual = PredictionSettings()
    changed, words = _changed(usual, least_probability, hold_down, daily_budget)
    seconds = parse_duration(since)
    end = SystemClock().now()
    wanted = normalised(target)
    scores: list[BacktestScore] = []
    with open_store(storage_dir, backend) as store:
        for url in [one for one in store.list_targets() if one and wanted in (None, one)]:
            scores.append(stored_score(store, url, end - seconds, end))
            runs = [(usual, "by today's predictor")] + ([(changed, words)] if words else [])
            for settings, called in runs:
                bar = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
                with bar:
                    task = bar.add_task(clean(url), total=seconds)
                    scores.append(
                        backtest_predictions(
                            store,
                            url,
                            end - seconds,
                            end,
                            settings,
                            words=called,
                            advance=lambda passed, bar=bar, task=task: bar.advance(task, passed),  # type: ignore[misc]
                        )
                    )
    if json:
        from json import dumps

        for score in scores:
            typer.echo(dumps(score.as_json()))
    elif not scores:
        typer.echo(
            "the store has seen no server yet" if target is None else f"the store has never seen {clean(target)}"
        )
    else:
        _print(scores)


def _changed(
    usual: Any, least_probability: float | None, hold_down: float | None, daily_budget: int | None
) -> tuple[Any, str]:
    """The settings to try, and what they are called; empty when nothing was changed."""
    from dataclasses import replace

    given: dict[str, Any] = {}
    if least_probability is not None:
        if not 0.0 < least_probability < 1.0:
            raise ConfigurationError(
                f"--least-probability {least_probability} makes no sense", hint="give a number between 0 and 1"
            )
        given["least_probability"] = least_probability
    if hold_down is not None:
        if not 0.0 <= hold_down <= 86_400.0:
            raise ConfigurationError(f"--hold-down {hold_down} makes no sense", hint="give 0 to 86400 seconds")
        given["hold_down_seconds"] = hold_down
    if daily_budget is not None:
        if not 0 <= daily_budget <= 10_000:
            raise ConfigurationError(f"--daily-budget {daily_budget} makes no sense", hint="give 0 to 10000")
        given["daily_budget"] = daily_budget
    return replace(usual, **given), ", ".join(f"{name} {value:g}" for name, value in given.items())


def _print(scores: list[BacktestScore]) -> None:
    last = None
    for score in scores:
        found = score.as_json()
        if score.target != last:
            last = score.target
            typer.echo(f"{clean(score.target)}: {found['failures']} failures in {_spent(found['days'])}")
        lead = found["median_lead_seconds"]
        ahead = "" if lead is None else f", {lead:.0f} s before (median)"
        rate = found["false_alarms_per_day"]
        often = "" if rate is None or found["days"] < LEAST_DAYS else f" ({rate:.1f} a day)"
        predicted = f"{found['failures_predicted']} of {found['failures']} failures predicted{ahead}"
        outcomes = (
            f"{found['happened']} happened, {found['did_not_happen']} did not{often}, {found['mitigated']} mitigated, "
            f"{found['censored']} censored, {found['open']} open"
        )
        typer.echo(f"  {score.settings}: {predicted}; {found['predictions']} predictions: {outcomes}")
        for kind, (failed, foretold, lead) in score.by_type().items():
            before = "" if lead is None else f", {lead:.0f} s before"
            typer.echo(f"    {kind}: {foretold} of {failed} predicted{before}")


def _spent(days: float) -> str:
    """A time in words of its size."""
    from vllm_monitor.terminal.format import duration

    return duration(days * 86_400.0)
