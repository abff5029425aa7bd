"""What a plugin answered, checked before anything of it goes further.

A plugin may answer anything. Each function here takes what its verb answered and gives records of ours, or raises
:class:`BadAnswerError` with the place and what was expected there.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_monitor.plugin_system.process import plain_text
from vllm_monitor.records import (
    FailurePrediction,
    GuardrailPolicy,
    LifecycleState,
    PredictionConfidence,
    Severity,
    StrategyRecord,
    TargetView,
)

__all__ = [
    "BadAnswerError",
    "CustomSample",
    "Panel",
    "panel_of",
    "policies_of",
    "predictions_of",
    "samples_of",
    "strategy_of",
]

MOST_SAMPLES = 2_000
MOST_WARNINGS = 100
MOST_LABELS = 20
MOST_ROWS = 30
MOST_CHARACTERS = 300
_METRIC_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_:]{0,199}")
_TAKEN = ("vllm:", "vllm_monitor_")
_CONFIDENCE = (
    (0.9, PredictionConfidence.VERY_HIGH),
    (0.7, PredictionConfidence.HIGH),
    (0.4, PredictionConfidence.MEDIUM),
)


class BadAnswerError(ValueError):
    """An answer that is not what its verb must answer."""

    def __init__(self, message: str) -> None:
        super().__init__(plain_text(message))


@dataclass(frozen=True, slots=True)
class CustomSample:
    """One number of a collector."""

    name: str
    value: float
    labels: dict[str, str]
    target: str


@dataclass(frozen=True, slots=True)
class Panel:
    """A few lines for the live view."""

    title: str
    rows: tuple[tuple[str, str], ...]


def samples_of(answer: Any, targets: Mapping[str, TargetView]) -> list[CustomSample]:
    """The samples that ``collect`` answered: a dict of names to numbers, or a list of dicts.

    Raises:
        BadAnswerError: When it is neither; none of them counts then.
    """
    if isinstance(answer, dict):
        answer = [{"name": name, "value": value} for name, value in answer.items()]
    samples = []
    for place, item in _items(answer, "collect", MOST_SAMPLES):
        name, value = item.get("name"), item.get("value")
        if not isinstance(name, str) or not _METRIC_NAME.fullmatch(name):
            raise BadAnswerError(f"{place} has the name {name!r}, which is none for a metric (write snake_case)")
        if name.startswith(_TAKEN):
            raise BadAnswerError(f"{place}: names that begin with {' or '.join(_TAKEN)} are not a plugin's")
        labels, target = item.get("labels", {}), item.get("target", "")
        if not isinstance(labels, dict) or len(labels) > MOST_LABELS:
            raise BadAnswerError(f"{place}: labels must be a dict of at most {MOST_LABELS}")
        if not isinstance(target, str) or (target and target not in targets):
            raise BadAnswerError(f"{place}: target is {target!r}, which is not watched here")
        samples.append(CustomSample(name, _number(value, f"{place} ({name})"), _labels(labels, place), target))
        _only(item, place, "name", "value", "labels", "target")
    return samples


def predictions_of(
    answer: Any, targets: Mapping[str, TargetView], *, now: float, made_by: str
) -> list[FailurePrediction]:
    """What ``detect`` expects of the servers, as predictions.

    Raises:
        BadAnswerError: When it is no list of warnings.
    """
    found = []
    for place, item in _items(answer, "detect", MOST_WARNINGS):
        target, failure_type = item.get("target"), item.get("failure_type")
        if not isinstance(target, str) or target not in targets:
            raise BadAnswerError(f"{place}: target is {target!r}, which is not watched here")
        if not isinstance(failure_type, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,99}", failure_type):
            raise BadAnswerError(f"{place}: failure_type is {failure_type!r}; write a name in snake_case")
        probability = _number(item.get("probability"), f"{place}: probability")
        if not 0.0 <= probability <= 1.0:
            raise BadAnswerError(f"{place}: probability is {probability!r}; write a number from 0 to 1")
        horizon = _seconds(item.get("horizon_seconds", 300.0), f"{place}: horizon_seconds")
        due = _seconds(item.get("time_to_failure_seconds", horizon), f"{place}: time_to_failure_seconds")
        reasons = item.get("reasons", [])
        if not isinstance(reasons, list):
            raise BadAnswerError(f"{place}: reasons must be a list of sentences")
        _only(
            item,
            place,
            "target",
            "failure_type",
            "probability",
            "horizon_seconds",
            "time_to_failure_seconds",
            "reasons",
        )
        found.append(
            FailurePrediction(
                prediction_id=uuid.uuid4().hex,
                timestamp=now,
                current_state=LifecycleState(targets[target]["state"]),
                predicted_failure_state=None,
                failure_type=failure_type,
                time_to_failure=due,
                probability=probability,
                confidence=next(
                    (word for least, word in _CONFIDENCE if probability >= least), PredictionConfidence.LOW
                ),
                contributing_factors=[_text(reason) for reason in reasons[:20]],
                recommended_mitigations=[],
                horizon_seconds=horizon,
                model_version=made_by,
                target=target,
            )
        )
    return found


def policies_of(answer: Any, plugin: str) -> list[GuardrailPolicy]:
    """The policies that ``guardrails`` answered; their conditions are checked where they are registered.

    Raises:
        BadAnswerError: When it is no list of them.
    """
    policies = []
    for place, item in _items(answer, "guardrails", 200):
        name, condition = item.get("name"), item.get("condition")
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,99}", name):
            raise BadAnswerError(f"{place} has the name {name!r}; write one in snake_case")
        if not isinstance(condition, str):
            raise BadAnswerError(f"{place} ({name}) has no condition")
        severity = item.get("severity", Severity.WARNING.value)
        if not isinstance(severity, str) or severity not in set(Severity):
            raise BadAnswerError(f"{place} ({name}): severity is {severity!r}; write {', '.join(Severity)}")
        _only(item, place, "name", "condition", "description", "intervention", "severity")
        policies.append(
            GuardrailPolicy(
                name,
                _text(item.get("description") or name),
                condition,
                item.get("intervention"),
                severity,
                metadata={"plugin": plugin},
            )
        )
    return policies


def strategy_of(answer: Any, plugin: str, *, version: str) -> StrategyRecord:
    """What ``describe`` says of a strategy.

    Raises:
        BadAnswerError: When it does not say what it must.
    """
    if not isinstance(answer, dict):
        raise BadAnswerError("describe must answer a dict")
    facts: dict[str, Any] = {"plugin": plugin, "version": version}
    for key in ("needs", "touches"):
        value = answer.get(key)
        if not isinstance(value, list):
            raise BadAnswerError(f"describe must say {key}: a list, not {value!r}")
        facts[key] = [_text(one) for one in value[:50]]
    for key in ("verified_by", "undone_by"):
        value = answer.get(key)
        if not isinstance(value, str) or not value.strip():
            raise BadAnswerError(f"describe must say {key}: a sentence, not {value!r}")
        facts[key] = _text(value)
    _only(answer, "describe", "description", "needs", "touches", "verified_by", "undone_by")
    return StrategyRecord(plugin, _text(answer.get("description") or plugin), metadata=facts)


def panel_of(answer: Any, plugin: str) -> Panel:
    """What ``render`` answered.

    Raises:
        BadAnswerError: When it is no panel.
    """
    if not isinstance(answer, dict):
        raise BadAnswerError("render must answer a dict with title and rows")
    rows = answer.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 2 for row in rows):
        raise BadAnswerError("render: rows must be a list of pairs of a name and a value")
    _only(answer, "render", "title", "rows")
    return Panel(
        _text(answer.get("title") or plugin), tuple((_text(key), _text(value)) for key, value in rows[:MOST_ROWS])
    )


def _items(answer: Any, verb: str, most: int) -> Iterator[tuple[str, dict[str, Any]]]:
    if answer is None:
        return
    if not isinstance(answer, list):
        raise BadAnswerError(f"{verb} must answer a list, not {type(answer).__name__}")
    if len(answer) > most:
        raise BadAnswerError(f"{verb} answered {len(answer)} things, the most is {most}")
    for number, item in enumerate(answer, 1):
        if not isinstance(item, dict):
            raise BadAnswerError(f"{verb}: number {number} must be a dict, not {type(item).__name__}")
        yield f"{verb}: number {number}", item


def _only(item: Mapping[str, Any], place: str, *known: str) -> None:
    extra = [key for key in item if key not in known]
    if extra:
        raise BadAnswerError(f"{place} has {', '.join(map(repr, extra[:5]))}; it may have {', '.join(known)}")


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadAnswerError(f"{place} is {value!r}, which is no number")
    try:
        return float(value)
    except OverflowError:
        raise BadAnswerError(f"{place} is too large for a number") from None


def _seconds(value: Any, place: str) -> float:
    seconds = _number(value, place)
    if not 0.0 <= seconds <= 31_536_000.0:
        raise BadAnswerError(f"{place} is {seconds!r}; write seconds, at most a year")
    return seconds


def _labels(labels: Mapping[str, Any], place: str) -> dict[str, str]:
    for key, value in labels.items():
        if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]{0,99}", key) or not isinstance(value, str | int | float | bool):
            raise BadAnswerError(f"{place}: the label {key!r}: {value!r} is none (names in snake_case, values text)")
    return {key: _text(value) for key, value in labels.items()}


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else str(value))[:MOST_CHARACTERS]
