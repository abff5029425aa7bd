"""What stands where on a screen of a given size."""

from __future__ import annotations

from dataclasses import dataclass

from rich.text import Text

from vllm_monitor.terminal import format as human
from vllm_monitor.terminal.arrange import LUXURY, Section, arrange, beside, blank, fixed
from vllm_monitor.terminal.figures import figures_section
from vllm_monitor.terminal.fleet import fleet_section, fleet_title_section
from vllm_monitor.terminal.history import TargetHistory
from vllm_monitor.terminal.machine import gpus_section, host_section, processes_section
from vllm_monitor.terminal.safe_text import Script
from vllm_monitor.terminal.sections import (
    badge_section,
    events_section,
    heading,
    heartbeat_section,
    panel_section,
    predictions_section,
    store_section,
    text_section,
    title_section,
)
from vllm_monitor.terminal.watched import Watched

__all__ = ["Screen", "screen_lines"]

# From these sizes on there is room for two columns, and for every figure.
_WIDE_CELLS = 110
_TALL_LINES = 36
_MACHINE_CELLS = 61  # the table of processes, all columns
_MOST_NOTES = 3
# Pictures of one target this much behind those of others are not "now".
_LAG_SECONDS = 5.0
_LAG_TICKS = 4.0
_EVENTS_WANTED = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """The circumstances of one drawing.

    Args:
        width: Cells of a line.
        height: Number of lines.
        script: Characters of the terminal.
        store_description: Where the store is.
        silent_seconds: How long no new picture has come, when that is long enough to say; 0 otherwise.
        log_line: Newest line that something wrote to stderr meanwhile.
    """

    width: int
    height: int
    script: Script
    store_description: str = ""
    silent_seconds: float = 0.0
    log_line: str = ""

    @property
    def wide(self) -> bool:
        """Whether two columns fit."""
        return self.width >= _WIDE_CELLS

    @property
    def tall(self) -> bool:
        """Whether every figure fits."""
        return self.height >= _TALL_LINES


def screen_lines(watched: Watched, screen: Screen) -> list[Text]:
    """At most ``screen.height`` lines of at most ``screen.width`` cells; the essential ones survive longest."""
    histories = watched.most_urgent_first
    if not histories:
        sections = [_waiting(screen), *_panels(watched, screen), *_store(watched, screen)]
    elif len(histories) == 1:
        title = title_section(histories[0].snapshot, watched.duration_seconds, screen.width, screen.script)
        sections = [
            title,
            *_silence(screen),
            *_details(watched, histories[0], screen),
            *_notes(histories[0], screen),
            *_panels(watched, screen),
            *_store(watched, screen),
        ]
    else:
        sections = _fleet(watched, histories, screen)
    lines = arrange(sections, screen.height)
    for line in lines:
        line.truncate(screen.width)  # a last guard: a wrapped line would push the most urgent one off the top
    return lines


def _fleet(watched: Watched, histories: list[TargetHistory], screen: Screen) -> list[Section]:
    top = histories[0]
    return [
        fleet_title_section(watched, screen.width, screen.script),
        *_silence(screen),
        fleet_section(histories, screen.width, screen.height, screen.script, priority=1),
        blank(),
        fixed([heading(f"most urgent: {top.snapshot.target}", screen.width, screen.script)], priority=2),
        *_details(watched, top, screen, of_many=True),
        *_panels(watched, screen),
        *_store(watched, screen),
    ]


def _details(watched: Watched, history: TargetHistory, screen: Screen, *, of_many: bool = False) -> list[Section]:
    """One target; among several, the table of all comes before everything but its badge and reason."""
    snapshot, width, script = history.snapshot, screen.width, screen.script
    now = snapshot.timestamp
    most = 5 if screen.tall else 3
    told = not snapshot.failure or snapshot.failure in snapshot.reason
    failure = "" if told else f"newest probe failed: {snapshot.failure}"
    badge = badge_section(snapshot, width, script, tall=screen.tall and not of_many)
    return [
        Section(badge.build, badge.wanted, badge.minimum, 2 if of_many else 0),
        text_section(snapshot.reason, width, script, most=most, style="bold", priority=2 if of_many else 0),
        text_section(_lag(watched, history), width, script, most=2, style="bold black on yellow", priority=1),
        text_section(failure, width, script, most=2, style="yellow", priority=2),
        heartbeat_section(snapshot, width, script, priority=2),
        predictions_section(
            watched.predictions_of(None if of_many else snapshot.target),
            now,
            width,
            script,
            with_target=of_many,
            priority=3,
        ),
        blank(),
        *_middle(history, screen),
        blank(),
        events_section(
            watched.events_of(None if of_many else snapshot.target),
            now,
            width,
            script,
            with_target=of_many,
            wanted=_EVENTS_WANTED if screen.tall else _EVENTS_WANTED // 2,
            priority=6,
        ),
        blank(),
    ]


def _middle(history: TargetHistory, screen: Screen) -> list[Section]:
    """Figures, and the machine below: beside each other or one below the other."""
    snapshot, script = history.snapshot, screen.script
    right_width = _MACHINE_CELLS if screen.wide else screen.width
    left_width = screen.width - right_width - 2 if screen.wide else screen.width
    figures = figures_section(history, left_width, script, roomy=screen.tall, priority=3)
    machine = [
        processes_section(history, right_width, script, priority=5),
        host_section(snapshot.host, right_width, script, priority=4),
        gpus_section(snapshot, right_width, script, priority=4),
    ]
    if not screen.wide:
        return [figures, blank(), *machine]
    if not any(section.wanted for section in machine):
        return [figures]
    return [beside([figures], left_width, machine, priority=3, minimum=figures.minimum)]


def _notes(history: TargetHistory, screen: Screen) -> list[Section]:
    return [
        text_section(f"note: {note}", screen.width, screen.script, most=2, style="dim", priority=LUXURY)
        for note in history.snapshot.notes[:_MOST_NOTES]
    ]


def _store(watched: Watched, screen: Screen) -> list[Section]:
    log = f"log: {screen.log_line}" if screen.log_line else ""
    store = store_section(watched.store, screen.store_description, screen.width, screen.script, priority=1)
    return [text_section(log, screen.width, screen.script, most=1, style="yellow", priority=7), store]


def _panels(watched: Watched, screen: Screen) -> list[Section]:
    return [panel_section(panel, screen.width, screen.script, priority=7) for panel in watched.panels]


def _silence(screen: Screen) -> list[Section]:
    if not screen.silent_seconds:
        return []
    words = f"NO NEW PICTURE FOR {human.duration(screen.silent_seconds)}: all below is old, the watch itself is stuck"
    return [text_section(words, screen.width, screen.script, most=2, style="bold black on yellow")]


def _lag(watched: Watched, history: TargetHistory) -> str:
    lag = watched.lag_seconds(history)
    if lag <= max(_LAG_SECONDS, _LAG_TICKS * history.interval_seconds):
        return ""
    return f"NO NEW PICTURE OF THIS TARGET FOR {human.duration(lag)}: what is below is old"


def _waiting(screen: Screen) -> Section:
    return text_section("Waiting for the first answer of the server.", screen.width, screen.script, most=2)
