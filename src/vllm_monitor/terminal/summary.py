"""The last words, on the normal screen, after the view is gone."""

from __future__ import annotations

from rich.text import Text

from vllm_monitor.terminal import format as human
from vllm_monitor.terminal.conditions import CALM, badge_style, condition_label, urgency
from vllm_monitor.terminal.history import TargetHistory
from vllm_monitor.terminal.safe_text import Script
from vllm_monitor.terminal.watched import Watched

__all__ = ["summary_lines"]

_MOST_TARGETS = 20


def summary_lines(watched: Watched, store_description: str, script: Script) -> list[Text]:
    """Condition of each target, what troubles there were, how long we watched, and what is stored where.

    Lines may be longer than the terminal: they are meant to be scrolled, copied and searched.
    """
    histories = watched.most_urgent_first
    targets = "1 target" if len(histories) == 1 else f"{len(histories)} targets"
    lines = [Text(f"Watched {targets} for {human.duration(watched.duration_seconds)}.")]
    for history in histories[:_MOST_TARGETS]:
        lines += _target_lines(history, script)
    if len(histories) > _MOST_TARGETS:
        lines.append(Text(f"  and {len(histories) - _MOST_TARGETS} more targets"))
    lines.append(_store_line(watched, store_description, script))
    return lines


def _target_lines(history: TargetHistory, script: Script) -> list[Text]:
    snapshot = history.snapshot
    lasted = human.duration(max(0.0, snapshot.timestamp - snapshot.condition_since))
    first = Text("  ")
    first.append(f" {condition_label(snapshot.condition)} ", style=badge_style(snapshot.condition))
    first.append(f" for {lasted}  ")
    first.append(script.clean(f"{snapshot.target}: {snapshot.reason}"))
    lines = [first]
    troubles = sorted((set(history.times_entered) - CALM) - {snapshot.condition}, key=urgency)
    seen = [
        f"{condition.value.replace('_', ' ')} {human.duration(history.seconds_in[condition])}"
        + (f" in {history.times_entered[condition]} spells" if history.times_entered[condition] > 1 else "")
        for condition in troubles
    ]
    if seen:
        lines.append(Text(f"      also seen: {', '.join(seen)}"))
    return lines


def _store_line(watched: Watched, store_description: str, script: Script) -> Text:
    store = watched.store
    if not store.keeping:
        return Text("Nothing was stored.")
    where = f" in {store_description}" if store_description else ""
    words = (
        f"Stored {human.count(store.stored_samples)} samples{where} "
        f"({human.byte_count(store.bytes_on_disk)}), {human.count(store.dropped)} dropped."
    )
    line = Text(script.clean(words))
    if not store.healthy:
        line.append(" " + script.clean(f"STORE NOT HEALTHY: {store.message}"), style="bold red")
    return line
