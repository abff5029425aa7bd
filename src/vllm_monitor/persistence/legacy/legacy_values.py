"""Columns of the earlier design as values. What makes no sense raises ``NotUnderstoodError``."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

from vllm_monitor.persistence.legacy.legacy_files import NotUnderstoodError, unpacked
from vllm_monitor.records import PredictionConfidence, PredictionOutcome

__all__ = [
    "Columns",
    "confidence_of",
    "content_id",
    "count_of",
    "dict_of",
    "list_of",
    "member_of",
    "moment_of",
    "number_of",
    "optional_member_of",
    "outcome_of",
    "rest_of",
    "text_of",
    "time_of",
]

_KEYS = frozenset(["id", "rowid", "created_at"])
_OUTCOME_WORDS = {
    **{member.value: member for member in PredictionOutcome},
    **dict.fromkeys(["occurred", "failed", "failure", "true", "correct", "true_positive"], PredictionOutcome.HAPPENED),
    **dict.fromkeys(
        ["not_occurred", "did_not_occur", "false", "false_positive", "no_failure", "incorrect"],
        PredictionOutcome.DID_NOT_HAPPEN,
    ),
    **dict.fromkeys(["prevented", "avoided", "mitigated"], PredictionOutcome.MITIGATED),
}
_CONFIDENCE_STEPS = (
    (0.9, PredictionConfidence.VERY_HIGH),
    (0.7, PredictionConfidence.HIGH),
    (0.4, PredictionConfidence.MEDIUM),
)

Member = TypeVar("Member", bound=StrEnum)
Columns = Mapping[str, Any]


def number_of(value: Any) -> float:
    """A number of a column; what the database made of NaN is not told apart from nothing.

    Raises:
        NotUnderstoodError: When it is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise NotUnderstoodError("a number is none")
    try:
        return float(value)
    except OverflowError as error:
        raise NotUnderstoodError("a number is too large") from error


def time_of(row: Columns) -> float:
    """The time of a row, in unix seconds."""
    timestamp = number_of(row.get("timestamp"))
    if not math.isfinite(timestamp):
        raise NotUnderstoodError("a time is none")
    return timestamp


def moment_of(value: Any) -> float:
    """Unix seconds of what SQLite calls a timestamp (text in UTC); 0 when there is none."""
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    try:
        return datetime.fromisoformat(value).replace(tzinfo=UTC).timestamp()
    except (TypeError, ValueError, OverflowError):
        return 0.0


def text_of(value: Any, name: str) -> str:
    """A text."""
    if not isinstance(value, str):
        raise NotUnderstoodError(f"{name} is no text")
    return value


def count_of(value: Any) -> int:
    """A count; 0 for what is none."""
    return value if isinstance(value, int) and 0 <= value < 1 << 62 else 0


def dict_of(column: Any) -> dict[str, Any]:
    """A dictionary, packed or not; empty for an empty column."""
    value = column if isinstance(column, dict) else unpacked(column)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise NotUnderstoodError("a dictionary is none")
    return value


def list_of(column: Any) -> list[Any]:
    """A list, packed or not; empty for an empty column."""
    value = column if isinstance(column, list) else unpacked(column)
    if value is None:
        return []
    if not isinstance(value, list):
        raise NotUnderstoodError("a list is none")
    return value


def member_of(kind: type[Member], name: Any) -> Member:
    """The member of that name."""
    member = kind.__members__.get(name.upper()) if isinstance(name, str) else None
    if member is None:
        raise NotUnderstoodError(f"unknown {kind.__name__}")
    return member


def optional_member_of(kind: type[Member], name: Any) -> Member | None:
    """The member of that name; ``None`` for an empty column."""
    return member_of(kind, name) if name else None


def outcome_of(word: Any) -> PredictionOutcome:
    """What became of a prediction, in the words that were in use; ``CENSORED`` for any other."""
    if word is None or word == "":
        return PredictionOutcome.OPEN
    return _OUTCOME_WORDS.get(str(word).strip().lower().replace(" ", "_"), PredictionOutcome.CENSORED)


def confidence_of(value: Any, probability: float) -> PredictionConfidence:
    """How sure a prediction was: a word, a number, or else what its probability says."""
    if isinstance(value, str) and value.upper() in PredictionConfidence.__members__:
        return PredictionConfidence[value.upper()]
    number = number_of(value) if isinstance(value, (int, float)) else probability
    return next((word for least, word in _CONFIDENCE_STEPS if number >= least), PredictionConfidence.LOW)


def rest_of(row: Columns, known: frozenset[str]) -> dict[str, Any]:
    """What is stored of columns that mean nothing here."""
    rest = {name: value for name, value in row.items() if name not in known and name not in _KEYS}
    rest = {name: value for name, value in rest.items() if value not in (None, "", "[]")}
    return {"legacy": rest} if rest else {}


def content_id(kind: str, row: Columns) -> str:
    """An id made from what is in a row."""
    content = json.dumps(sorted(row.items()), default=repr, separators=(",", ":"))
    digest = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return f"legacy-{kind}-{digest}"
