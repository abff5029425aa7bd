"""The parts of the screen of one target, beside its figures."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.cells import cell_len
from rich.text import Text

from vllm_monitor.picture.snapshot import Snapshot
from vllm_monitor.plugin_system import Panel
from vllm_monitor.records import Condition, Event, FailurePrediction, Severity
from vllm_monitor.terminal import format as human
from vllm_monitor.terminal.arrange import Section, fixed
from vllm_monitor.terminal.conditions import (
    Level,
    badge_style,
    condition_label,
    level_of,
    mark_of,
)
from vllm_monitor.terminal.safe_text import Script, without_scheme
from vllm_monitor.terminal.store_line import StoreLine
from vllm_monitor.terminal.tables import Cell, facts, indented, line, spread

__all__ = [
    "badge_section",
    "events_section",
    "heading",
    "heartbeat_section",
    "panel_section",
    "predictions_section",
    "store_section",
    "text_section",
    "title_section",
]

# A page older than this many seconds is old enough that its figures must not be read as "now".
_OLD_PAGE_SECONDS = 5.0
_MOST_PREDICTIONS = 4
_SEVERITY_STYLES = {Severity.INFO: "", Severity.WARNING: "bold yellow", Severity.CRITICAL: "bold red"}
_SEVERITY_WORDS = {Severity.INFO: "info", Severity.WARNING: "WARNING", Severity.CRITICAL: "CRITICAL"}


def title_section(snapshot: Snapshot, watched_seconds: float, width: int, script: Script) -> Section:
    """Target, model and version; how long we have watched, and what time it is."""
    right = f"{human.clock_time(snapshot.timestamp)}"
    watched = f"watched {human.duration(watched_seconds)}  "
    if width >= 72:
        right = watched + right
    room = width - len(right) - 3
    model = script.clean(", ".join(snapshot.models)) or "model -"
    version = script.fit(f"vLLM {snapshot.version or human.UNKNOWN}", 18)
    left = Text(no_wrap=True)
    target = script.clean(snapshot.target)
    if cell_len(target) + cell_len(model) + len(version) + 4 > room:
        target, model = without_scheme(target), model.rpartition("/")[2]
    left.append(script.fit_middle(target, max(24, room // 2)), style="bold")
    model_room = room - left.cell_len - len(version) - 4
    if model_room >= 6:
        left.append("  " + script.fit_middle(model, model_room), style="cyan")
    if room - left.cell_len >= len(version) + 2:
        left.append("  " + version, style="dim")
    return fixed([indented(spread(left, right, width - 1, "dim"))])


def badge_section(snapshot: Snapshot, width: int, script: Script, *, tall: bool) -> Section:
    """The condition in words on its colour, since when, and the lifecycle state."""
    condition = snapshot.condition
    words = f"{mark_of(condition)} {condition_label(condition)}".strip()
    lasted = human.duration(max(0.0, snapshot.timestamp - snapshot.condition_since))
    since = _moment(snapshot.condition_since, snapshot.timestamp)
    style = badge_style(condition)
    badge = Text(f" {words}  for {lasted}", style=style, no_wrap=True)
    for part in (f"  since {since}", f"{script.separator}state {snapshot.state.value.replace('_', ' ')}"):
        if badge.cell_len + len(part) <= width:
            badge.append(part)
    badge.truncate(width, pad=True)
    if not tall:
        return fixed([badge])
    edge = Text(" " * width, style=style)
    return Section(lambda height: [edge, badge, edge] if height > 2 else [badge], 3, 1, priority=1)


def text_section(text: str, width: int, script: Script, *, most: int, style: str = "", priority: int = 0) -> Section:
    """A sentence, wrapped into at most ``most`` lines; nothing for an empty one."""
    lines = len(script.wrap(text, max(1, width - 1), most))
    return Section(
        lambda height: [
            Text(" " + part, style=style, no_wrap=True) for part in script.wrap(text, max(1, width - 1), height)
        ],
        lines,
        min(lines, 2),
        priority,
    )


def heartbeat_section(snapshot: Snapshot, width: int, script: Script, *, priority: int) -> Section:
    """When the engine last got anywhere, and what our own probes see of the server."""
    values = snapshot.values
    alarmed = level_of(snapshot.condition) is Level.CRITICAL
    pulse = human.duration(_age(values.get("progress_age_seconds")))
    pulse = f"last progress {pulse} ago" if pulse != human.UNKNOWN else "last progress -"
    in_flight = [values.get("requests_running"), values.get("requests_waiting")]
    known = [number for number in in_flight if number is not None]
    if len(known) == len(in_flight) and not any(known) and snapshot.condition is Condition.IDLE:
        pulse += " (nothing to do)"
    page_age = _age(None if snapshot.scraped_at is None else snapshot.timestamp - snapshot.scraped_at)
    old = page_age is not None and page_age > _OLD_PAGE_SECONDS
    status = human.UNKNOWN if snapshot.health_status is None else str(snapshot.health_status)
    health = f"/health {status} in {human.latency(values.get('health_latency_seconds'))}"
    parts = [(pulse, "bold red" if alarmed else "bold")]
    if page_age is None:
        parts.append(("no figures yet", "yellow"))
    elif old:
        parts.append((f"FIGURES {human.duration(page_age)} OLD", "bold yellow"))
    parts += [
        (health, "" if snapshot.health_status == 200 else "yellow"),
        (f"connections {human.count(values.get('established_connections'))}", ""),
        (f"accept queue {human.count(values.get('listen_queue'))}", ""),
        (f"scrape {human.latency(values.get('scrape_duration_seconds'))}", "dim"),
    ]
    return fixed([indented(facts(parts, width - 1, script))], priority=priority)


def events_section(
    events: Sequence[Event],
    now: float,
    width: int,
    script: Script,
    *,
    with_target: bool,
    wanted: int,
    priority: int,
) -> Section:
    """Recent events, newest first; the second line of a long one is not shown."""

    def build(height: int) -> list[Text]:
        return [heading("events", width, script), *map(_event_line, events[: height - 1])]

    def _event_line(event: Event) -> Text:
        text = f"[{event.target}] {event.message}" if with_target and event.target else event.message
        style = _SEVERITY_STYLES[event.severity]
        when = _moment(event.timestamp, now)
        cells = [Cell(when, len(when), "dim"), Cell(_SEVERITY_WORDS[event.severity], 8, style)]
        return indented(line([*cells, Cell(text, max(0, width - 11 - len(when)), style)], script))

    if not events:
        return fixed([])
    return Section(build, 1 + min(wanted, len(events)), 2, priority)


def predictions_section(
    predictions: Sequence[FailurePrediction],
    now: float,
    width: int,
    script: Script,
    *,
    with_target: bool,
    priority: int,
) -> Section:
    """Open predictions, each with what speaks for it on lines of its own; nothing without any."""
    lines: list[Text] = []
    for one in predictions[:_MOST_PREDICTIONS]:
        left = max(0.0, one.timestamp + one.time_to_failure - now)
        sure = "" if one.calibrated else ", uncalibrated"
        where = f"[{one.target}] " if with_target else ""
        words = f"{where}{one.failure_type} {one.probability:.0%}{sure}, expected in {human.duration(left)}"
        lines += [
            Text(f" {part}", style="bold yellow", no_wrap=True) for part in script.wrap(words, max(1, width - 1), 1)
        ]
        why = "; ".join(one.contributing_factors)
        lines += [Text(f"   {part}", no_wrap=True) for part in script.wrap(why, max(1, width - 3), 2)]
    if not lines:
        return fixed([])
    title = heading("predicted", width, script)
    return Section(lambda height: [title, *lines[: height - 1]], 1 + len(lines), 2, priority)


def panel_section(panel: Panel, width: int, script: Script, *, priority: int) -> Section:
    """What a plugin shows: names on the left, values on the right of them."""
    names = min(max((cell_len(script.clean(name)) for name, _ in panel.rows), default=0), max(8, width // 2))

    def build(height: int) -> list[Text]:
        rows = [[Cell(name, names), Cell(value, max(0, width - names - 2))] for name, value in panel.rows[: height - 1]]
        return [heading(panel.title, width, script), *(indented(line(row, script)) for row in rows)]

    return Section(build, 1 + len(panel.rows), min(2, 1 + len(panel.rows)), priority)


def store_section(store: StoreLine, description: str, width: int, script: Script, *, priority: int) -> Section:
    """What is kept, where, and whether that works."""
    if not store.keeping:
        return fixed([indented(facts([("nothing is stored", "dim")], width - 1, script))], priority=priority)
    words, style = ("store ok", "green") if store.healthy else ("!! STORE NOT HEALTHY", "bold white on red")
    parts = [(words, style)]
    if store.message and not store.healthy:
        parts.append((store.message, "bold"))
    parts += [
        (f"{human.count(store.stored_samples)} samples stored", ""),
        (human.byte_count(store.bytes_on_disk), ""),
        (f"{human.count(store.dropped)} dropped", "bold yellow" if store.dropped else ""),
    ]
    if description:
        parts.append((script.fit_middle(description, max(12, width // 3)), "dim"))
    if store.message and store.healthy:
        parts.append((store.message, "dim"))
    return fixed([indented(facts(parts, width - 1, script))], priority=priority)


def heading(words: str, width: int, script: Script) -> Text:
    """A line with words in it."""
    words = script.fit_middle(words, max(0, width - 4))
    return Text(f"{script.rule * 2} {words} ".ljust(width, script.rule)[:width], style="dim", no_wrap=True)


def _moment(timestamp: float, now: float) -> str:
    """The time of day, with its date when that is not today's."""
    moment, today = human.iso_time(timestamp), human.iso_time(now)
    if human.UNKNOWN in {moment, today} or moment[:10] == today[:10]:
        return human.clock_time(timestamp)
    return datetime.fromisoformat(moment).strftime("%m-%d %H:%M")


def _age(seconds: float | None) -> float | None:
    """An age that a clock set back cannot make negative."""
    return None if seconds is None else max(0.0, seconds)
