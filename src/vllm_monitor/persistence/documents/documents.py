"""Guardrails, plugins and strategies as entries that many processes, and a person with an editor, may change.

An entry is a name, a revision and the fields of a record, each as JSON text of ``value_codec``. Every change makes
the next revision; a deletion is an entry without fields, so that it is not undone by somebody who does not know of
it. :func:`decide` is the rule by which a change meets what is stored.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from vllm_monitor.errors import ConfigurationError, StoreDamagedError, ValueNotStorableError
from vllm_monitor.persistence.codecs.value_codec import decode_value, encode_value
from vllm_monitor.records import GuardrailPolicy, PluginRecord, StrategyRecord

__all__ = [
    "DOCUMENT_KINDS",
    "GUARDRAILS",
    "PLUGINS",
    "STRATEGIES",
    "Decision",
    "DocumentKind",
    "Edit",
    "Entry",
    "decide",
    "json_text",
    "merged_entry",
]

Record = TypeVar("Record", GuardrailPolicy, PluginRecord, StrategyRecord)

_DEEPEST = 100


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as stored.

    Args:
        revision: Counts the changes, from 1.
        modified_at: Unix seconds of the newest change.
        deleted: Whether it is only the mark of a deletion.
        fields: Field to its JSON text; also such as no record has, which are kept as they are.
        edited: Whether a person changed it since it was written; ``revision`` counts that already.
    """

    revision: int
    modified_at: float
    deleted: bool
    fields: Mapping[str, str]
    edited: bool = False


@dataclass(frozen=True, slots=True)
class DocumentKind(Generic[Record]):
    """One kind of documents.

    Args:
        name: ``guardrails``, ``plugins`` or ``strategies``.
        record_type: The record's class.
        types: Field to the types that its value may have; an empty tuple is anything.
        required: Fields that an entry cannot do without.
    """

    name: str
    record_type: type[Record]
    types: Mapping[str, tuple[type, ...]]
    required: tuple[str, ...] = ()

    def fields_of(self, record: Record) -> dict[str, str]:
        """All fields of a record as JSON text.

        Raises:
            ValueNotStorableError: When it is of another class, or holds something that could not be given back.
        """
        if not isinstance(record, self.record_type):
            raise ValueNotStorableError(
                f"{type(record).__name__} is no {self.record_type.__name__}",
                hint=f"Pass a {self.record_type.__name__}, or a mapping of names to those.",
            )
        return self.encoded({name: getattr(record, name) for name in self.types})

    def encoded(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Some fields as JSON text.

        Raises:
            ConfigurationError: When there is no such field.
            ValueNotStorableError: When a value is not of the field's type, or could not be given back.
        """
        texts: dict[str, str] = {}
        for name, value in values.items():
            if name == "sha256" and self.record_type is PluginRecord:
                continue  # always that of the source
            if name not in self.types:
                near = difflib.get_close_matches(str(name), self.types, n=1)
                raise ConfigurationError(
                    f"{self.record_type.__name__} has no field {name!r}",
                    hint=f"Did you mean {near[0]}?" if near else f"The fields are {', '.join(self.types)}.",
                )
            text = encode_value(value)
            if _depth(json.loads(text)) > _DEEPEST:
                raise ValueNotStorableError(f"{name} is nested too deeply", hint="Store a flatter value.")
            self._check(name, decode_value(text))
            texts[name] = text
        return texts

    def record_of(self, name: str, entry: Entry) -> Record:
        """The record of an entry.

        Raises:
            StoreDamagedError: When a field is missing, or is not what it should be.
        """
        values = {field: decode_value(entry.fields[field]) for field in self.types if field in entry.fields}
        try:
            for field, value in values.items():
                self._check(field, value)
        except ValueNotStorableError as error:
            raise StoreDamagedError(f"{self.name} {name!r}: {error.message}", hint=error.hint) from None
        missing = self.missing(entry.fields)
        if missing:
            raise StoreDamagedError(
                f"{self.name} {name!r} has no {', '.join(missing)}", hint="Add what is missing to the entry."
            )
        record: Any = self.record_type
        made: Record = record(name=name, **values)
        return made

    def missing(self, fields: Mapping[str, str]) -> list[str]:
        """Which required fields are not there."""
        return [field for field in self.required if field not in fields]

    def _check(self, name: str, value: Any) -> None:
        wanted = self.types[name]
        if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted)):
            names = " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in wanted)
            raise ValueNotStorableError(
                f"{name} is {type(value).__name__}, not {names}", hint=f"Make {name} a value of type {names}."
            )


GUARDRAILS = DocumentKind(
    "guardrails",
    GuardrailPolicy,
    {
        "description": (str,),
        "condition": (str,),
        "intervention": (),
        "severity": (str,),
        "enabled": (bool,),
        "metadata": (dict,),
        "target": (str,),
    },
    required=("description", "condition"),
)

PLUGINS = DocumentKind(
    "plugins",
    PluginRecord,
    {
        "plugin_type": (str,),
        "source": (str,),
        "description": (str,),
        "version": (str,),
        "config": (dict,),
        "dependencies": (list, tuple),
        "enabled": (bool,),
        "metadata": (dict,),
        "target": (str,),
    },
    required=("plugin_type",),
)

STRATEGIES = DocumentKind(
    "strategies",
    StrategyRecord,
    {
        "description": (str,),
        "enabled": (bool,),
        "config": (dict,),
        "success_rate": (int, float, type(None)),
        "mean_execution_seconds": (int, float, type(None)),
        "attempt_count": (int,),
        "outcome_counts": (dict,),
        "context_performance": (dict,),
        "metadata": (dict,),
        "target": (str,),
    },
)

DOCUMENT_KINDS: dict[str, DocumentKind[Any]] = {kind.name: kind for kind in (GUARDRAILS, PLUGINS, STRATEGIES)}
"""Name of a kind to the kind."""


@dataclass(frozen=True, slots=True)
class Edit:
    """What a caller wants of one entry.

    Args:
        fields: The fields to set; ``None`` deletes the entry.
        fallback: All fields, for when there is no entry to set some fields of.
        known: The entry as the caller last saw it; ``None`` when it never did.
        expected: The revision that the entry must have, 0 for no entry; ``None`` is any.
    """

    fields: Mapping[str, str] | None
    fallback: Mapping[str, str] = dataclasses.field(default_factory=dict)
    known: Entry | None = None
    expected: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of an edit.

    Args:
        entry: The entry to write; ``None`` when nothing is to be written.
        stale: The entry is not at the revision that was expected.
        left_out: Somebody else deleted the entry, and that stays.
    """

    entry: Entry | None = None
    stale: bool = False
    left_out: bool = False


def decide(stored: Entry | None, edit: Edit, now: float, *, absent_is_deleted: bool) -> Decision:
    """How an edit meets what is stored.

    Without ``expected`` an edit that does not know the newest revision is made on it all the same: the fields that
    the caller changed since it saw the entry are set, the others stay as somebody else left them. Only a deletion
    stays what it is.

    Args:
        stored: The stored entry.
        edit: What is wanted.
        now: Unix seconds.
        absent_is_deleted: Whether an entry that is not there was taken out by somebody (else it was lost).
    """
    live = stored is not None and not stored.deleted
    revision = stored.revision if stored is not None else 0
    if edit.expected is not None and edit.expected != revision:
        return Decision(stale=True)
    known = edit.known
    following = max(revision, known.revision if known is not None else 0) + 1
    if edit.fields is None:
        gone = stored is not None and stored.deleted
        return Decision() if gone else Decision(Entry(following, now, deleted=True, fields={}))
    changes: Mapping[str, str] = edit.fields
    unseen = known is not None and not known.deleted and not _is_as_known(stored, known)
    if known is not None and unseen and edit.expected is None:
        changes = {name: text for name, text in edit.fields.items() if known.fields.get(name) != text}
        if stored is not None and stored.deleted:
            return Decision(left_out=True)
        if stored is None and absent_is_deleted and not changes:
            return Decision(left_out=True)
    if stored is None or not live:
        return Decision(Entry(following, now, deleted=False, fields={**edit.fallback, **edit.fields}))
    fields = {**stored.fields, **changes}
    if fields == stored.fields:
        return Decision()
    return Decision(Entry(following, now, deleted=False, fields=fields))


def _is_as_known(stored: Entry | None, known: Entry) -> bool:
    # Fields count too: whoever edits by hand may take the revision out, and then it begins anew.
    return stored is not None and stored.revision == known.revision and dict(stored.fields) == dict(known.fields)


def merged_entry(stored: Entry | None, other: Entry, now: float) -> Entry | None:
    """What an entry of another store makes of ours: the one that was changed last stays. Twice is once.

    Args:
        stored: Ours; ``None`` when there is none.
        other: The entry of the other store.
        now: Unix seconds; a change in the future counts as one of now.

    Returns:
        The entry to write, or ``None`` when ours stays.
    """
    modified_at = min(other.modified_at, now)
    if stored is None:
        return dataclasses.replace(other, modified_at=modified_at, revision=max(other.revision, 1), edited=False)
    if (stored.deleted, dict(stored.fields)) == (other.deleted, dict(other.fields)):
        return None
    if modified_at <= stored.modified_at or stored.edited:
        return None
    revision = max(stored.revision, other.revision) + 1
    return Entry(revision, modified_at, other.deleted, other.fields)


def json_text(tree: Any) -> str:
    """JSON text of what was read as JSON, such as every file and column can hold."""
    text = json.dumps(tree, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(tree, separators=(",", ":"))
    return text


def _depth(tree: Any) -> int:
    deepest = 0
    waiting = [(tree, 1)]
    while waiting:
        item, depth = waiting.pop()
        deepest = max(deepest, depth)
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        waiting += [(value, depth + 1) for value in inner]
    return deepest
