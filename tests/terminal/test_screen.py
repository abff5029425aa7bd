from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from vllm_monitor.clock import ManualClock
from vllm_monitor.picture.snapshot import Snapshot
from vllm_monitor.plugin_system import Panel
from vllm_monitor.records import (
    Condition,
    Event,
    FailurePrediction,
    GpuInfo,
    HostPressure,
    LifecycleState,
    PredictionConfidence,
    ProcessInfo,
    Severity,
)
from vllm_monitor.terminal import LiveView, StoreLine
from vllm_monitor.terminal.conditions import URGENCY_ORDER, condition_label

Picture = Callable[..., Snapshot]
Lines = Callable[..., list[str]]
SIZES = [(80, 24), (120, 40), (200, 60), (60, 24)]
STORE = StoreLine(stored_samples=12_345, bytes_on_disk=2 * 2**20, dropped=7)
STALL = "12 requests in flight, but no token and no engine step for 14 s; /health still answers 200."


@pytest.fixture
def stalled(picture: Picture, start_time: float) -> LiveView:
    """Sixty good ticks, then a stall of 133 s of which fourteen ticks were seen."""
    view = LiveView(store_description="./monitor_data")
    for tick in range(60):
        view.update([picture(tick)], [], STORE)
    stopped = ProcessInfo(4001, "engine", "stopped", 99.0, 2_400_000_000, threads=30)
    changed = Event(
        timestamp=start_time + 65, event_type="condition_changed", message="ok -> stalled", severity=Severity.CRITICAL
    )
    flat = {"requests_running": 12.0, "requests_waiting": 80.0, "generation_tokens_per_second": 0.0}
    for tick in (*range(60, 73), 193):
        snapshot = picture(
            tick,
            condition=Condition.STALLED,
            condition_since=start_time + 60,
            state=LifecycleState.DEGRADED,
            reason=STALL,
            values={**flat, "progress_age_seconds": tick - 60.0},
            processes=(stopped,),
        )
        view.update([snapshot], [changed], STORE)
    return view


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_what_is_wrong_since_when_why_and_what_moved(
    stalled: LiveView, lines_of: Lines, width: int, height: int
) -> None:
    lines = lines_of(stalled, width, height)
    text = "\n".join(lines)
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width
    badge = next(line for line in lines if "STALLED" in line)
    assert "!! STALLED  for 2 m 13 s" in badge
    assert "state degraded" in badge
    assert STALL in " ".join(" ".join(lines).split())
    assert "last progress 2 m 13 s ago" in text
    assert "127.0.0.1:8000" in lines[0]
    assert "tiny-llama" in lines[0]
    assert "vLLM 0.32.0" in lines[0]
    tokens = next(line for line in lines if line.startswith(" tokens/s")).split()
    assert tokens[1:4] == ["0", "▼", "412"]
    waiting = next(line for line in lines if line.startswith(" waiting")).split()
    assert waiting[1:4] == ["80", "▲", "3"]
    assert "when ok" in text
    assert "stopped" in next(line for line in lines if "4001" in line)
    assert "CRITICAL ok -> stalled" in text
    assert "12,345 samples stored" in text
    assert "7 dropped" in text


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_healthy_server(picture: Picture, lines_of: Lines, width: int, height: int) -> None:
    view = LiveView()
    for tick in range(3):
        view.update([picture(tick)], [], STORE)
    text = "\n".join(lines_of(view, width, height))
    assert " OK  for 2.0 s" in text
    assert "!!" not in text
    assert "43.7 %" in text
    assert "412" in text
    assert "123 ms" in text
    assert "456 ms" in text
    assert "31.0 %" in text  # CPU of the API process between two ticks
    assert "host cpu 34.2 %" in text
    assert "▲" not in text
    assert "▼" not in text


def test_what_is_not_known_is_a_dash(picture: Picture, lines_of: Lines) -> None:
    view = LiveView()
    view.update(
        [
            picture(
                values={},
                processes=(),
                host=None,
                version=None,
                models=(),
                scraped_at=None,
                health_status=None,
                condition=Condition.UNREACHABLE,
                failure="connection refused",
            )
        ],
        [],
        STORE,
    )
    lines = lines_of(view, 80, 24)
    for label in ("tokens/s", "running", "waiting", "KV cache", "TTFT p50/p95", "ITL p50/p95", "queue p50/p95"):
        row = next(line for line in lines if line.startswith(f" {label}"))
        assert row.removeprefix(f" {label}").split() == ["-", "-"], row
    text = "\n".join(lines)
    assert "last progress - " in text
    assert "/health - in -" in text
    assert "vLLM -" in text
    assert "newest probe failed: connection refused" in text
    assert "no figures yet" in text


def test_a_missing_value_leaves_a_gap_in_its_line(picture: Picture, lines_of: Lines) -> None:
    view = LiveView()
    values = [{"generation_tokens_per_second": 9.0}, {}, {"generation_tokens_per_second": 9.0}]
    for tick, known in enumerate(values):
        view.update([picture(tick, values=known)], [], STORE)
    row = next(line for line in lines_of(view, 200, 60) if line.startswith(" tokens/s"))
    assert "█ █" in row


def test_ticks_that_never_came_are_a_gap(picture: Picture, lines_of: Lines) -> None:
    view = LiveView()
    for tick in (0, 1, 2, 3, 8, 9):
        view.update([picture(tick)], [], STORE)
    row = next(line for line in lines_of(view, 200, 60) if line.startswith(" tokens/s"))
    assert "████    ██" in row


def test_the_usual_value_is_from_before_the_trouble_not_from_before_its_detection(
    picture: Picture, lines_of: Lines, start_time: float
) -> None:
    view = LiveView()
    for tick in range(18):
        condition = Condition.OK if tick < 16 else Condition.STALLED
        speed = 412.0 if tick < 6 else 0.0  # the stall began at 6 and was recognised at 16
        snapshot = picture(
            tick,
            condition=condition,
            condition_since=start_time + (0 if tick < 16 else 6),
            values={"generation_tokens_per_second": speed},
        )
        view.update([snapshot], [], STORE)
    row = next(line for line in lines_of(view, 80, 24) if line.startswith(" tokens/s")).split()
    assert row[1:4] == ["0", "▼", "412"]


def test_a_busy_time_is_compared_with_even_when_idle_came_between(picture: Picture, lines_of: Lines) -> None:
    view = LiveView()
    conditions = [Condition.OK] * 6 + [Condition.IDLE] * 9
    for tick, condition in enumerate(conditions):
        known = {"requests_running": 4.0 if condition is Condition.OK else 0.0}
        view.update([picture(tick, condition=condition, values=known)], [], STORE)
    troubled = picture(15, condition=Condition.STALLED, condition_since=1e12, values={"requests_running": 9.0})
    view.update([troubled], [], STORE)
    lines = lines_of(view, 80, 24)
    assert any("when ok" in line for line in lines)
    assert next(line for line in lines if line.startswith(" running")).split()[1:4] == ["9", "▲", "4"]


def test_trouble_from_the_start_has_nothing_to_compare_with(picture: Picture, lines_of: Lines) -> None:
    view = LiveView()
    view.update([picture(condition=Condition.STALLED)], [], STORE)
    lines = lines_of(view, 80, 24)
    assert any("before" in line for line in lines)
    assert next(line for line in lines if line.startswith(" running")).split()[1:3] == ["12", "-"]


def test_processes_that_vanished_are_missed(picture: Picture, lines_of: Lines) -> None:
    view = LiveView()
    view.update([picture(0)], [], STORE)
    assert "no process" not in "\n".join(lines_of(view, 80, 24))
    view.update([picture(1, processes=())], [], STORE)
    assert "no process of the server is left" in "\n".join(lines_of(view, 80, 24))


def test_cpu_is_measured_between_looks_and_not_between_ticks(picture: Picture, lines_of: Lines) -> None:
    view = LiveView()
    first, second = ((ProcessInfo(4000, "api", "running", seconds, 1, threads=1),) for seconds in (10.0, 11.0))
    for tick, processes in enumerate((first, first, second, second)):
        view.update([picture(tick, processes=processes)], [], STORE)
    row = next(line for line in lines_of(view, 80, 24) if " api " in line)
    assert "50.0 %" in row


def test_gpus_and_what_slows_them(picture: Picture, gpu: GpuInfo, lines_of: Lines) -> None:
    view = LiveView()
    view.update([picture(gpus=(gpu, dataclasses.replace(gpu, index=1, throttle_reasons=0)))], [], STORE)
    lines = lines_of(view, 120, 40)
    first = next(line for line in lines if "gpu 0" in line)
    second = next(line for line in lines if "gpu 1" in line)
    assert "THROTTLED: power cap" in first
    assert "THROTTLED" not in second
    assert "50.0 %" in second


def test_an_old_page_is_called_old(picture: Picture, lines_of: Lines, start_time: float) -> None:
    view = LiveView()
    view.update([picture(30, scraped_at=start_time + 16)], [], STORE)
    assert "FIGURES 14 s OLD" in "\n".join(lines_of(view, 80, 24))


def test_a_store_that_fails_is_loud(picture: Picture, lines_of: Lines) -> None:
    view = LiveView()
    store = StoreLine(5, 10, 3, healthy=False, message="no space left on device")
    view.update([picture()], [], store)
    line = lines_of(view, 80, 24)[-1]
    assert "!! STORE NOT HEALTHY · no space left on device" in line


def test_a_watch_that_is_stuck_says_so_itself(picture: Picture, lines_of: Lines) -> None:
    clock = ManualClock()
    view = LiveView(clock=clock)
    view.update([picture()], [], STORE)
    clock.advance(4.0)
    assert "NO NEW PICTURE" not in "\n".join(lines_of(view, 80, 24))
    view.update([picture()], [], STORE)
    clock.advance(10.0)
    assert "NO NEW PICTURE FOR 14 s" in "\n".join(lines_of(view, 80, 24))


def test_before_the_first_picture(lines_of: Lines) -> None:
    assert "Waiting for the first answer" in "\n".join(lines_of(LiveView(), 80, 24))


def test_events_are_shown_once_and_newest_first(picture: Picture, lines_of: Lines, start_time: float) -> None:
    view = LiveView()
    events = [Event(timestamp=start_time + at, event_type="x", message=f"event {at}") for at in range(3)]
    view.update([picture(0)], events[:2], STORE)
    view.update([picture(1)], events, STORE)
    found = [line.split()[-1] for line in lines_of(view, 80, 24) if "info" in line]
    assert found == ["2", "1", "0"]


def test_panels_of_plugins(picture: Picture, lines_of: Lines) -> None:
    view = LiveView()
    rows = (("jobs", "3"), ("a very long name " * 20, "\x1b[31mred\x1b[0m"))
    view.update([picture(0)], [], STORE, [Panel("my panel", rows)])
    for width, height in SIZES:
        lines = lines_of(view, width, height)
        assert max(map(cell_len, lines)) <= width
        assert len(lines) <= height
        if height >= 40:
            assert any("my panel" in line for line in lines)
            assert any(line.split() == ["jobs", "3"] for line in lines)
    assert not any("\x1b" in line for line in lines)
    view.update([picture(1)], [], STORE)
    assert not any("my panel" in line for line in lines_of(view, 200, 60))


HOSTILE = "[red]boom[/red] \x1b[31mANSI\x1b[0m\x1b]0;owned\x07 :bomb:\r\n\x9b2J [/]"


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("many", [False, True])
def test_nothing_of_others_is_interpreted(
    picture: Picture, gpu: GpuInfo, lines_of: Lines, start_time: float, width: int, height: int, many: bool
) -> None:
    view = LiveView(store_description=HOSTILE)
    snapshot = picture(
        target="[red]t[/red]\x1b[31m",
        condition=Condition.STALLED,
        reason=HOSTILE,
        models=("[red]m[/red]\x1b[5m",),
        version="[b]1[/b]",
        failure=HOSTILE,
        notes=(HOSTILE,),
        processes=(ProcessInfo(1, f"other:{HOSTILE}", HOSTILE, 0.0, 0),),
        gpus=(dataclasses.replace(gpu, name=HOSTILE),),
    )
    event = Event(timestamp=start_time, event_type="x", message=HOSTILE, target=snapshot.target)
    others = [picture(target=f"\x1b[7m{number}") for number in range(3)] if many else []
    view.update([snapshot, *others], [event], StoreLine(healthy=False, message=HOSTILE))
    lines = lines_of(view, width, height)
    text = "\n".join(lines)
    assert "[red]t[/red]" in text
    assert many or "[red]m[/red]" in text
    assert "[red]boom[/red] ANSI :bomb:" in text
    assert "\x1b" not in text
    assert "\x9b" not in text
    assert "owned" not in text
    assert max(map(cell_len, lines)) <= width


def test_an_ascii_terminal_gets_ascii(picture: Picture, console_of: Callable[..., object], lines_of: Lines) -> None:
    view = LiveView(console=console_of(encoding="ascii"))  # type: ignore[arg-type]  # fixtures are untyped doors
    for tick in range(30):
        view.update([picture(tick, models=("模型",))], [], STORE)
    for width, height in SIZES:
        assert "\n".join(lines_of(view, width, height)).isascii()


_texts = st.text(max_size=60)
_numbers = st.floats() | st.sampled_from([0.0, 1.0, 1e300])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 220),
    st.integers(1, 70),
    st.integers(1, 30),
    _texts,
    st.dictionaries(
        st.sampled_from(
            sorted(
                {
                    "requests_running",
                    "kv_cache_usage_ratio",
                    "progress_age_seconds",
                    "time_to_first_token_p95_seconds",
                    "generation_tokens_per_second",
                }
            )
        ),
        _numbers,
    ),
    st.sampled_from(list(Condition)),
)
def test_any_picture_fits_any_screen(
    picture: Picture,
    lines_of: Lines,
    start_time: float,
    width: int,
    height: int,
    targets: int,
    text: str,
    values: dict[str, float],
    condition: Condition,
) -> None:
    view = LiveView(store_description=text)
    for tick in range(2):
        snapshots = [
            picture(
                tick,
                target=f"{number}{text}",
                reason=text * 4,
                models=(text,),
                values=values,
                condition=condition if number % 2 else Condition.OK,
                host=HostPressure(),
                notes=(text,),
                failure=text,
            )
            for number in range(targets)
        ]
        events = [Event(timestamp=start_time, event_type="x", message=text)]
        view.update(snapshots, events, StoreLine(message=text, healthy=bool(tick)))
    lines = lines_of(view, width, height)
    assert len(lines) <= height
    assert all(cell_len(line) <= width for line in lines)


def test_every_condition_has_a_place_and_words() -> None:
    assert sorted(URGENCY_ORDER) == sorted(Condition)
    assert condition_label(Condition.ENGINE_DEAD) == "ENGINE DEAD"


def test_open_predictions_stand_on_the_screen_with_what_speaks_for_them(
    picture: Picture, lines_of: Lines, start_time: float
) -> None:
    view = LiveView()
    reasons = ["the KV cache is 93 % full, full in 3 s at this rate", "4 requests wait, 0.3 more each second"]
    one = FailurePrediction(
        "p",
        start_time,
        LifecycleState.SERVING,
        None,
        "kv_exhaustion",
        40.0,
        0.84,
        PredictionConfidence.HIGH,
        reasons,
        [],
        target=picture(0).target,
    )
    view.update([picture(10)], [], STORE, (), [one])
    text = "\n".join(lines_of(view, 80, 40))
    assert "kv_exhaustion 84%, uncalibrated, expected in 30 s" in text
    assert all(reason in " ".join(text.split()) for reason in reasons)
