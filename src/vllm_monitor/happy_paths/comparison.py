"""How far one execution is from another: figures at equal load, states and their durations, configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_monitor.happy_paths.profile import PROFILED
from vllm_monitor.records import HappyPath, StateCheckpoint

__all__ = ["Comparison", "Deviation", "compare", "state_steps"]

LEAST_PAGES = 10.0
"""Fewer pages at a load level say nothing."""
LEAST_RATIO = 0.2
LEAST_SIGMA = 3.0
"""A figure deviates when it is a fifth away and three standard deviations (of a page) as well."""
TINY = 1e-9
_UNITS = {"seconds": " s", "bytes": " bytes", "ratio": ""}


@dataclass(frozen=True, slots=True)
class Deviation:
    """One thing that is otherwise.

    Args:
        what: The metric, state or setting.
        level: The load level; empty where load has no part in it.
        before: What it was; a mean, or a text.
        after: What it is.
        change_ratio: By which share of ``before`` it changed; ``None`` for texts.
        is_worse: Whether that is worse; ``None`` when it is merely otherwise.
        score: How far, from 0 up; 1 is a doubling.
    """

    what: str
    level: str
    before: Any
    after: Any
    change_ratio: float | None
    is_worse: bool | None
    score: float

    def __str__(self) -> str:
        if self.change_ratio is None:
            return f"{self.what}: {self.before or 'nothing'} became {self.after or 'nothing'}"
        load = f" at equal load ({self.level} running)" if self.level else ""
        unit = next((text for suffix, text in _UNITS.items() if self.what.endswith(suffix)), "")
        return f"{self.what} {self.change_ratio:+.0%}{load}: {self.before:.4g}{unit} became {self.after:.4g}{unit}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """How one execution is, measured by another.

    Args:
        deviations: What is otherwise, the worst first.
        levels: Load levels at which both have enough pages.
        same_configuration: Whether model, version and arguments are the same.
    """

    deviations: tuple[Deviation, ...]
    levels: tuple[str, ...]
    same_configuration: bool

    @property
    def score(self) -> float:
        """The worst of what is worse; 0 when nothing is."""
        return max((one.score for one in self.deviations if one.is_worse), default=0.0)


def compare(before: HappyPath, after: HappyPath) -> Comparison:
    """Measure an execution by a known-good one."""
    levels: set[str] = set()
    found = list(_figures(before.metrics_profile, after.metrics_profile, levels))
    found += _states(before.checkpoints, after.checkpoints)
    settings = list(_settings(before.metadata.get("fingerprint"), after.metadata.get("fingerprint")))
    ordered = sorted(found, key=lambda one: (one.is_worse is not True, -one.score))
    low = sorted(levels, key=lambda level: int(level.partition("-")[0]))
    return Comparison((*ordered, *settings), tuple(low), not settings)


def state_steps(checkpoints: Sequence[StateCheckpoint]) -> list[tuple[str, float]]:
    """States in order and how long each lasted, in seconds; the last one's end is not known and it has 0."""
    steps: list[tuple[str, float]] = []
    for one, after in zip(checkpoints, [*checkpoints[1:], None], strict=True):
        seconds = 0.0 if after is None else max(0.0, after.timestamp - one.timestamp)
        if steps and steps[-1][0] == one.state.value:
            steps[-1] = (steps[-1][0], steps[-1][1] + seconds)
        else:
            steps.append((one.state.value, seconds))
    return steps


def _figures(before: Mapping[str, Any], after: Mapping[str, Any], levels: set[str]) -> Iterator[Deviation]:
    for name, direction in PROFILED.items():
        ours, theirs = before.get(name), after.get(name)
        if not isinstance(ours, Mapping) or not isinstance(theirs, Mapping):
            continue
        for level, old in ours.items():
            new = theirs.get(level)
            if new is None or old["count"] < LEAST_PAGES or new["count"] < LEAST_PAGES:
                continue
            levels.add(level)
            difference = new["mean"] - old["mean"]
            spread = max(old["std"], abs(old["mean"]) * 0.01, TINY)
            ratio = difference / abs(old["mean"]) if abs(old["mean"]) > TINY else math.copysign(1.0, difference)
            # The mean of many pages moves less than one page does; its own error is what counts.
            error = spread / math.sqrt(min(old["count"], new["count"]) / LEAST_PAGES)
            if abs(ratio) < LEAST_RATIO or abs(difference) < LEAST_SIGMA * error:
                continue
            worse = None if direction == 0 else difference * direction > 0
            yield Deviation(name, level, old["mean"], new["mean"], ratio, worse, abs(ratio))


def _states(before: Sequence[StateCheckpoint], after: Sequence[StateCheckpoint]) -> Iterator[Deviation]:
    ours, theirs = state_steps(before), state_steps(after)
    old, new = [state for state, _ in ours], [state for state, _ in theirs]
    failed = [state for state in new if state not in old and state in _BAD]
    if failed:
        yield Deviation("states", "", ", ".join(old), ", ".join(new), None, True, 1.0)
    known = dict(ours)
    for state, seconds in theirs:
        usual = known.get(state, 0.0)
        if usual > 1.0 and state in _STARTUP and seconds > 2.0 * usual:
            yield Deviation(f"{state} seconds", "", usual, seconds, seconds / usual - 1.0, True, seconds / usual - 1.0)


_BAD = {"degraded", "error", "critical_error", "unrecoverable", "recovering"}
_STARTUP = {
    "validating_environment",
    "loading_configurations",
    "initializing",
    "setting_up_workers",
    "loading_model",
    "allocating_memory",
    "compiling_kernels",
}


def _settings(before: Any, after: Any) -> Iterator[Deviation]:
    old, new = (one if isinstance(one, Mapping) else {} for one in (before, after))
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            yield Deviation(name, "", _text(old.get(name)), _text(new.get(name)), None, None, 0.0)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={item}" for name, item in sorted(value.items()))
    return "" if value is None else str(value)
