"""Checkpoints and events as readable rows with a checksum, and back.

What a column's type cannot say precisely (an int where a float belongs, a text where an enum belongs) is
stored a second time in the column ``exact``, as JSON by field name, and wins when the row is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from vllm_monitor.errors import StoreDamagedError, ValueNotStorableError
from vllm_monitor.persistence.redaction import redact
from vllm_monitor.persistence.text_column import from_text_column, to_text_column
from vllm_monitor.persistence.value_codec import decode_value, encode_value
from vllm_monitor.records import Condition, Event, LifecycleState, Severity, StateCheckpoint, StateTransition

__all__ = ["CHECKPOINTS", "EVENTS", "RareKind", "Row"]

Row = dict[str, Any]
Record = TypeVar("Record", StateCheckpoint, Event)
UnknownObject = Callable[[Any], str] | None


class _Form(Enum):
    TEXT = "text"
    REAL = "real"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class RareKind(Generic[Record]):
    """How one kind of record becomes a row of one table.

    Args:
        table: Name of the table.
        record_type: The record's class.
        id_field: The field that names a record across stores.
        filter_field: The field that ``get_*`` filters on, beside target and time.
        forms: Field name to the form of its column, or to the enum whose value it holds, in column order.
        redacted: Fields from which secrets are taken.
    """

    table: str
    record_type: type[Record]
    id_field: str
    filter_field: str
    forms: Mapping[str, _Form | type[Enum]]
    redacted: tuple[str, ...] = ()

    def to_row(self, record: Record, on_unknown: UnknownObject = None) -> Row:
        """The row of a record, redacted and with its id filled in.

        Raises:
            ValueNotStorableError: When the record is of another class, or holds something that could not be
                given back.
        """
        if not isinstance(record, self.record_type):
            raise ValueNotStorableError(
                f"{type(record).__name__} is no {self.record_type.__name__}",
                hint=f"Pass a {self.record_type.__name__}.",
            )
        values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
        for name in self.redacted:
            values[name] = redact(values[name])
        if values[self.id_field] is None:
            values[self.id_field] = uuid.uuid4().hex
        exact: dict[str, Any] = {}
        row: Row = {}
        for name, form in self.forms.items():
            row[name], is_exact = _to_column(values[name], form, name, on_unknown)
            if not is_exact:
                exact[name] = values[name]
        row["exact"] = encode_value(exact, on_unknown=on_unknown) if exact else None
        row["checksum"] = self._checksum(row)
        return row

    def from_row(self, row: Mapping[str, Any]) -> Record:
        """The record of a row.

        Raises:
            StoreDamagedError: When the row is not what was stored.
        """
        if row["checksum"] != self._checksum(row):
            raise StoreDamagedError(
                f"a row of {self.table} does not match its checksum",
                hint="The row is skipped; run the store's check.",
            )
        values = {name: _from_column(row[name], form) for name, form in self.forms.items()}
        if row["exact"] is not None:
            values.update(decode_value(row["exact"]))
        return self.record_type(**values)

    def matches(self, row: Row, wanted: str | None, start: float | None, end: float | None, target: str | None) -> bool:
        """Whether a row that is still in memory passes the filters of ``get_*``."""
        return (
            (wanted is None or row[self.filter_field] == wanted)
            and (start is None or row["timestamp"] >= start)
            and (end is None or row["timestamp"] <= end)
            and (target is None or row["target"] == target)
        )

    def _checksum(self, row: Mapping[str, Any]) -> str:
        canonical = json.dumps([row[name] for name in self.forms] + [row["exact"]], separators=(",", ":"))
        return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def _to_column(value: Any, form: _Form | type[Enum], name: str, on_unknown: UnknownObject) -> tuple[Any, bool]:
    """The column of a field, and whether it says all of it."""
    if form is _Form.JSON:
        return (None if value is None else encode_value(value, on_unknown=on_unknown)), True
    if form is _Form.REAL:
        return _to_real(value, name)
    if value is None:
        return None, True
    if isinstance(form, type):
        if type(value) is form:
            return value.value, True
    elif type(value) is str:
        return to_text_column(value), True
    return to_text_column(str(value)), False


def _to_real(value: Any, name: str) -> tuple[float, bool]:
    try:
        real = float(value)
    except (TypeError, ValueError, OverflowError):
        real = math.nan
    if not math.isfinite(real):
        raise ValueNotStorableError(f"{name} is no time", hint="Pass unix seconds as a finite number.")
    is_exact = type(value) is float and (real != 0 or math.copysign(1, real) > 0)
    return real + 0.0, is_exact  # a database gives minus zero back as zero, and the checksum must hold


def _from_column(column: Any, form: _Form | type[Enum]) -> Any:
    if column is None or form is _Form.REAL:
        return column
    if form is _Form.JSON:
        return decode_value(column)
    text = from_text_column(column)
    if isinstance(form, type):
        # A member that a newer version added: its plain value is more use than an error.
        return form(text) if text in {member.value for member in form} else text
    return text


CHECKPOINTS = RareKind(
    table="checkpoints",
    record_type=StateCheckpoint,
    id_field="checkpoint_id",
    filter_field="state",
    forms={
        "checkpoint_id": _Form.TEXT,
        "target": _Form.TEXT,
        "timestamp": _Form.REAL,
        "state": LifecycleState,
        "previous_state": LifecycleState,
        "transition_type": StateTransition,
        "condition": Condition,
        "reason": _Form.TEXT,
        "arguments": _Form.JSON,
        "environment": _Form.JSON,
        "hardware_state": _Form.JSON,
        "error_context": _Form.JSON,
        "interventions_triggered": _Form.JSON,
        "guardrails_enforced": _Form.JSON,
        "metrics": _Form.JSON,
        "metadata": _Form.JSON,
    },
    redacted=("arguments", "environment"),
)

EVENTS = RareKind(
    table="events",
    record_type=Event,
    id_field="event_id",
    filter_field="event_type",
    forms={
        "event_id": _Form.TEXT,
        "target": _Form.TEXT,
        "timestamp": _Form.REAL,
        "event_type": _Form.TEXT,
        "severity": Severity,
        "message": _Form.TEXT,
        "data": _Form.JSON,
        "metadata": _Form.JSON,
    },
)
