"""Records as readable rows with a checksum, and back.

What a column's type cannot say precisely (an int where a float belongs, a text where an enum belongs, a NaN) is
stored a second time in the column ``exact``, as JSON by field name, and wins when the row is read.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, TypeVar

from vllm_monitor.errors import ConfigurationError, StoreDamagedError, ValueNotStorableError
from vllm_monitor.persistence.codecs.arguments import checked_text, stored_text
from vllm_monitor.persistence.codecs.columns import Form, UnknownObject, from_column, to_column
from vllm_monitor.persistence.codecs.redaction import redact, redact_certain, within_depth
from vllm_monitor.persistence.codecs.text_column import to_text_column
from vllm_monitor.persistence.codecs.value_codec import decode_value, encode_value
from vllm_monitor.persistence.schema import metadata

__all__ = ["RareKind", "Row", "Wanted"]

Row = dict[str, Any]
Wanted = Mapping[str, str | None]
"""Column to the value that it must have; ``None`` is no restriction."""
Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class RareKind(Generic[Record]):
    """How one kind of record becomes a row of one table.

    Args:
        table: Name of the table.
        record_type: The record's class, a dataclass whose field names are the columns.
        id_field: The field that names a record across stores.
        forms: Field name to the form of its column, or to the enum whose value it holds, in column order.
        filters: Columns that ``get_*`` filters on, beside target and time.
        redacted: Fields from which secrets are taken, by name and by look.
        scrubbed: Fields that may hold anything, from which only what is certainly a secret is taken.
        derived: Columns that say more plainly what other columns hold, for filters and for people.
        is_rare: Durable when saving returns; request summaries are not.
    """

    table: str
    record_type: type[Record]
    id_field: str
    forms: Mapping[str, Form | type[Enum]]
    filters: tuple[str, ...] = ()
    redacted: tuple[str, ...] = ()
    scrubbed: tuple[str, ...] = ()
    derived: Mapping[str, Callable[[Any], str | None]] = field(default_factory=dict)
    is_rare: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns but ``id`` and ``checksum``, in the order in which they are summed."""
        return (*self.forms, *self.derived, "exact")

    def to_row(self, record: Record, on_unknown: UnknownObject = None, *, compress: bool = True) -> Row:
        """The row of a record, redacted and with its id filled in.

        Args:
            record: The record.
            on_unknown: What is stored in place of an object that cannot be; without it that is an error.
            compress: Whether large values of the forms that allow it are packed.

        Raises:
            ValueNotStorableError: When the record is of another class, or holds something that could not be
                given back.
        """
        if not isinstance(record, self.record_type):
            raise ValueNotStorableError(
                f"{type(record).__name__} is no {self.record_type.__name__}",
                hint=f"Pass a {self.record_type.__name__}.",
            )
        values = {name: getattr(record, name) for name in self.forms}
        if on_unknown is not None:
            values = {name: within_depth(value, on_unknown) for name, value in values.items()}
        for name in self.redacted:
            values[name] = redact(values[name])
        for name in self.scrubbed:
            values[name] = redact_certain(values[name])
        values[self.id_field] = self._id_of(values[self.id_field], on_unknown)
        exact: dict[str, Any] = {}
        row: Row = {}
        for name, value in values.items():
            row[name], is_exact = self._column(name, value, on_unknown, compress=compress)
            if not is_exact:
                exact[name] = value
        for name, derive in self.derived.items():
            row[name] = derive(record)
        row["exact"] = encode_value(exact, on_unknown=on_unknown) if exact else None
        row["checksum"] = self.checksum(row)
        return row

    def _id_of(self, given: Any, on_unknown: UnknownObject) -> str:
        if given is None:
            return uuid.uuid4().hex
        if on_unknown is not None and not isinstance(given, str):
            return on_unknown(given)
        return stored_text(given, self.id_field)

    def edited(self, row: Mapping[str, Any], **values: Any) -> Row:
        """A row with other values in some fields and everything else as it was, to the bit.

        Derived columns do not follow, so none may be derived from these fields.

        Raises:
            ValueNotStorableError: When a value could not be given back unchanged.
        """
        new = {name: row[name] for name in self.columns}
        exact: dict[str, Any] = {} if row["exact"] is None else decode_value(row["exact"])
        odd = {name: value for name, value in exact.items() if name not in values}
        for name, value in values.items():
            new[name], is_exact = self._column(name, value, None, compress=True)
            if not is_exact:
                odd[name] = value
        if odd.keys() != exact.keys() or any(name in odd for name in values):
            new["exact"] = encode_value(odd) if odd else None
        new["checksum"] = self.checksum(new)
        return new

    def value_of(self, row: Mapping[str, Any], name: str) -> Any:
        """The value of one field of a row."""
        if row["exact"] is not None:
            exact = decode_value(row["exact"])
            if name in exact:
                return exact[name]
        return from_column(row[name], self.forms[name])

    def _column(self, name: str, value: Any, on_unknown: UnknownObject, *, compress: bool) -> tuple[Any, bool]:
        optional = bool(metadata.tables[self.table].c[name].nullable)
        return to_column(value, self.forms[name], name, optional=optional, on_unknown=on_unknown, compress=compress)

    def from_row(self, row: Mapping[str, Any]) -> Record:
        """The record of a row.

        Raises:
            StoreDamagedError: When the row is not what was stored.
        """
        self.verify(row)
        values = {name: from_column(row[name], form) for name, form in self.forms.items()}
        if row["exact"] is not None:
            values.update(decode_value(row["exact"]))
        return self.record_type(**values)

    def verify(self, row: Mapping[str, Any]) -> None:
        """Check a row against its checksum.

        Raises:
            StoreDamagedError: When it does not match.
        """
        if row["checksum"] != self.checksum(row):
            raise StoreDamagedError(
                f"a row of {self.table} does not match its checksum",
                hint="The row is skipped; run vllm-monitor check.",
            )

    def checksum(self, row: Mapping[str, Any]) -> str:
        """BLAKE2b (8 bytes, hexadecimal) of the JSON array of all columns but ``id`` and ``checksum``."""
        canonical = json.dumps([row[name] for name in self.columns], separators=(",", ":"), default=repr)
        return hashlib.blake2b(canonical.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()

    def wanted(self, **values: Enum | str | None) -> Wanted:
        """Filters in the form that columns have; enums and their names (in any case) mean their value."""
        return {name: self._wanted_column(name, value) for name, value in values.items() if value is not None}

    def _wanted_column(self, name: str, value: Enum | str) -> str:
        form = self.forms.get(name)
        kind = form if isinstance(form, type) else None
        if isinstance(value, Enum):
            return to_text_column(str(value.value))
        text = checked_text(value, name)
        if kind is not None and text.lower() not in {str(member.value) for member in kind}:
            known = ", ".join(str(member.value) for member in kind)
            raise ConfigurationError(f"there is no {name} {text!r}", hint=f"Pass one of {known}.")
        return to_text_column(text.lower() if kind is not None or name in self.derived else text)

    def matches(self, row: Row, wanted: Wanted, start: float | None, end: float | None, target: str | None) -> bool:
        """Whether a row that is still in memory passes the filters of ``get_*``."""
        return (
            all(value is None or row[name] == value for name, value in wanted.items())
            and (start is None or row["timestamp"] >= start)
            and (end is None or row["timestamp"] <= end)
            and (target is None or row["target"] == target)
        )
