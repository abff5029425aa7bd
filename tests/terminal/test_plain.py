from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from vllm_monitor.picture.snapshot import Snapshot
from vllm_monitor.records import Condition, Event, Severity
from vllm_monitor.terminal import LiveView, StoreLine

Picture = Callable[..., Snapshot]
ConsoleOf = Callable[..., Console]
TextOf = Callable[[Console], str]
STORE = StoreLine(stored_samples=1234, bytes_on_disk=2048)


def test_changes_and_summaries(picture: Picture, console_of: ConsoleOf, text_of: TextOf, start_time: float) -> None:
    console = console_of(width=40)
    reason = "12 requests in flight but no token for 5 s, and this sentence is longer than any line"
    with LiveView(console=console) as view:
        for tick in range(26):
            stalled = tick >= 15
            view.update(
                [
                    picture(
                        tick,
                        condition=Condition.STALLED if stalled else Condition.OK,
                        reason=reason if stalled else "fine",
                        condition_since=start_time + (12 if stalled else 0),
                    )
                ],
                [],
                STORE,
            )
    lines = [line.partition(" ")[2] for line in text_of(console).splitlines()]
    figures = "412 tokens/s, 12 running, 3 waiting, stored 1,234 samples (2.0 KiB), dropped 0"
    assert lines[:4] == [
        "http://127.0.0.1:8000 OK: fine",
        f"summary http://127.0.0.1:8000 ok for 10 s, {figures}",
        f"http://127.0.0.1:8000 STALLED (was OK): {reason}",
        f"summary http://127.0.0.1:8000 stalled for 8.0 s, {figures}",
    ]
    assert "\x1b" not in text_of(console)


def test_a_failing_store_is_told_once_and_so_is_its_recovery(
    picture: Picture, console_of: ConsoleOf, text_of: TextOf
) -> None:
    console = console_of()
    view = LiveView(console=console)
    failing = StoreLine(healthy=False, message="disk full")
    for tick, store in enumerate([STORE, failing, failing, STORE]):
        view.update([picture(tick)], [], store)
    text = text_of(console)
    assert text.count("STORE NOT HEALTHY disk full") == 1
    assert text.count("STORE OK again") == 1


def test_one_line_stays_one_line_whatever_is_in_it(picture: Picture, console_of: ConsoleOf, text_of: TextOf) -> None:
    console = console_of(encoding="ascii")
    view = LiveView(console=console)
    view.update([picture(reason="[red]x[/red]\n\x1b[2J模型 :bomb:")], [], STORE)
    lines = text_of(console).splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("OK: [red]x[/red] ?? :bomb:")


def test_the_last_summary_names_the_troubles_that_were(
    picture: Picture, console_of: ConsoleOf, text_of: TextOf
) -> None:
    console = console_of()
    conditions = [Condition.OK, Condition.STALLED, Condition.OK, Condition.STALLED, Condition.STALLED, Condition.OK]
    with LiveView(console=console) as view:
        for tick, condition in enumerate(conditions):
            view.update([picture(tick, condition=condition)], [], STORE)
    assert "also seen: stalled 3.0 s in 2 spells" in text_of(console)


def test_predictions_failures_and_alerts_are_lines_of_their_own(
    picture: Picture, console_of: ConsoleOf, text_of: TextOf, start_time: float
) -> None:
    console = console_of(width=200)
    told = [
        Event(timestamp=start_time, event_type=kind, message=f"{kind} it is", severity=severity, target="http://a")
        for kind, severity in (
            ("failure_predicted", Severity.WARNING),
            ("failure_happened", Severity.CRITICAL),
            ("prediction_resolved", Severity.INFO),
            ("alert_firing", Severity.WARNING),
            ("condition_changed", Severity.WARNING),
            ("watch_started", Severity.INFO),
        )
    ]
    with LiveView(console=console) as view:
        view.update([picture(0)], told, STORE)
        view.update([picture(1)], told, STORE)
    lines = [line.partition(" ")[2] for line in text_of(console).splitlines()]
    assert [line for line in lines if "it is" in line] == [
        "http://a warning: failure_predicted it is",
        "http://a critical: failure_happened it is",
        "http://a info: prediction_resolved it is",
        "http://a warning: alert_firing it is",
    ]
