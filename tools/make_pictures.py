"""Draw the pictures of the documentation: the real terminal view of a simulated server, as SVG.

The simulator plays an engine that freezes under load; its pages go through the same pipeline, the same judgement
and the same view as those of a live server. Everything is in simulated time, so a picture takes a second and comes
out the same every time. What is drawn refers to nothing outside the file: no fonts, no scripts.

Usage::

    python tools/make_pictures.py [FOLDER]      default: docs/pictures
"""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from vllm_monitor.cli.store_line import StoreLines
from vllm_monitor.clock import ManualClock
from vllm_monitor.core import TargetPipeline
from vllm_monitor.lifecycle_tracker import LifecycleTracker
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.records import HealthObservation, Observation, PageObservation, VersionObservation
from vllm_monitor.simulator import LoadSettings, ServerSettings, Simulator, parse_fault
from vllm_monitor.terminal import LiveView

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
URL = "http://127.0.0.1:8000"
MODEL = "simulated"
BEGIN = 1_772_589_600.0  # 2026-03-04 02:00:00 UTC: the hour in which one is on call
SIZE = (100, 24)  # cells, lines
FROZEN_AFTER_SECONDS = 75.0
DRAWN_AFTER_SECONDS = 95.0
SCRAPE_SECONDS = 0.004

# Dark, and every pair of colours that the view uses has enough contrast.
THEME = TerminalTheme(
    (13, 17, 23),
    (201, 209, 217),
    [
        (72, 79, 88),
        (207, 34, 46),
        (63, 185, 80),
        (210, 153, 34),
        (56, 115, 206),
        (188, 140, 255),
        (57, 197, 207),
        (240, 246, 252),
    ],
    [
        (110, 118, 129),
        (255, 123, 114),
        (86, 211, 100),
        (227, 179, 65),
        (121, 192, 255),
        (210, 168, 255),
        (86, 212, 221),
        (255, 255, 255),
    ],
)


def simulated_seconds(
    duration_seconds: float, faults: Sequence[str], seed: int
) -> Iterator[tuple[float, list[Observation]]]:
    """What a monitor would see of a simulated server, second by second: time and observations."""
    settings = ServerSettings(load=LoadSettings(requests_per_second=3.0), model=MODEL)
    simulator = Simulator(settings, seed=seed, faults=map(parse_fault, faults), start_time=BEGIN)
    for second in range(int(duration_seconds) + 1):
        now = simulator.unix_time
        layout, values = simulator.scrape()
        seen: list[Observation] = [
            PageObservation(
                target=URL, timestamp=now, latency_seconds=SCRAPE_SECONDS, layout=layout, values=values, status=200
            ),
            HealthObservation(
                target=URL, timestamp=now, latency_seconds=SCRAPE_SECONDS / 2, status=simulator.health_status()
            ),
        ]
        if second == 0:
            seen.append(VersionObservation(target=URL, timestamp=now, version="0.32.0", models=(MODEL,)))
        yield now + SCRAPE_SECONDS, seen
        simulator.advance(1.0)


def stalled_screen() -> str:
    """An engine frozen for some seconds while clients wait and ``/health`` says 200, as SVG."""
    clock = ManualClock(BEGIN)
    view = LiveView(console=Console(file=io.StringIO()), store_description="./monitor_data", clock=clock)
    with tempfile.TemporaryDirectory() as folder:
        store = PersistenceManager(PersistenceConfig(storage_dir=Path(folder)), clock=clock)
        store_lines = StoreLines(store)
        try:
            pipeline = TargetPipeline(URL, tracker=LifecycleTracker(store), store=store)
            story = simulated_seconds(DRAWN_AFTER_SECONDS, [f"freeze@{FROZEN_AFTER_SECONDS:g}+60"], seed=7)
            for now, observations in story:
                clock.set_now(now)
                tick = pipeline.step(now, observations)
                view.update([tick.snapshot], tick.events, store_lines.newest())
            store.flush_all()
            view.update([tick.snapshot], (), store_lines.newest(count=True))
        finally:
            store.close()
    return _as_svg(view, f"vllm-monitor watch {URL}")


def _as_svg(view: LiveView, title: str) -> str:
    width, height = SIZE
    console = Console(
        file=io.StringIO(), record=True, width=width, height=height, force_terminal=True, color_system="truecolor"
    )
    console.print(view.render(SIZE))
    return _self_contained(console.export_svg(title=title, theme=THEME, unique_id="terminal"))


def _self_contained(svg: str) -> str:
    """Without the fonts that rich would fetch from elsewhere; the fixed length of each text keeps columns straight."""
    svg = re.sub(r"\s*@font-face \{[^}]*\}", "", svg)
    svg = svg.replace("Fira Code, monospace", "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace")
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write all pictures; returns the exit status."""
    folder = Path(arguments[0]) if arguments else PICTURES
    os.environ["TZ"] = "UTC"  # the view shows local times
    time.tzset()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "stalled.svg"
    path.write_text(stalled_screen(), encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
