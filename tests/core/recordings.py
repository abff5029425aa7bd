"""Finds recordings and replays them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_monitor.collectors import Recording, read_recording
from vllm_monitor.core import ReplayReport, replay_ticks
from vllm_monitor.persistence import PersistenceManager

DATA = Path(__file__).parent.parent / "data"


@dataclass
class Incident:
    """A recording and what was done to the server in it."""

    path: Path
    inject_ts: float | None
    end_ts: float | None

    def replay(self, store: PersistenceManager | None = None) -> ReplayReport:
        return replay(read_recording(self.path), store)


def replay(recording: Recording, store: PersistenceManager | None = None) -> ReplayReport:
    report = ReplayReport(recording.target)
    for tick in replay_ticks(recording, store=store):
        report.add(tick)
    return report


def incident(folder: Path, name: str) -> Incident:
    truth: dict[str, Any] = json.loads((folder / f"{name}.events.json").read_text())
    return Incident(folder / f"{name}.jsonl.gz", truth.get("inject_ts"), truth.get("end_ts"))


def condition_at(report: ReplayReport, ts: float) -> str:
    found = "none"
    for entry in report.timeline:
        if entry["ts"] <= ts:
            found = entry["condition"]
    return found
