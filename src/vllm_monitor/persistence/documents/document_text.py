"""The JSON files of documents as text: written for people, read tolerantly.

::

    {"version": 1,
     "entries": {
       "kv-nearly-full": {
         "revision": 3, "modified_at": 1767225600.0, "deleted": false,
         "description": "...", "condition": "...", ...
         "checksum": "5f0c..."}}}

Everything may be edited. A changed entry no longer matches its checksum and so counts as one revision newer; the
next save of the file writes that down. A new entry needs only its name and the fields that a record must have. To
delete one for good, write ``"deleted": true``: text that is merely taken out looks like text that was lost. Keys
that no record has stay in the file. Values that JSON cannot say are as ``value_codec`` describes. Sources of
plugins are never compressed here, and their ``sha256`` is only shown: it is computed from the source.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_monitor.errors import StoreDamagedError, StoreTooNewError
from vllm_monitor.persistence.codecs.text_column import from_text_column, to_text_column
from vllm_monitor.persistence.codecs.value_codec import decode_value
from vllm_monitor.persistence.documents.documents import PLUGINS, DocumentKind, Entry, json_text

__all__ = ["DocumentText", "parse_document", "salvage_document", "write_document"]

_VERSION = 1
_LATEST = 1e18  # seconds; a number that is no time
_OURS = ("revision", "modified_at", "deleted", "checksum")
_MEND = "Mend the file; vllm-monitor check says where."
_STRING_OR_BRACKET = re.compile(r'"(?:\\.|[^"\\])*"|[{}\[\]]')
_START_OF_OBJECT = re.compile(r'("(?:[^"\\\n]|\\.)*")\s*:\s*(?=\{)')
_UNREADABLE = re.compile("[\udc80-\udcff]")


@dataclass(slots=True)
class DocumentText:
    """What a file says.

    Args:
        entries: Name to entry.
        unreadable: Key to what stands there and is no entry; kept as it is.
        extra: Other keys of the file; kept as they are.
        salvaged: Whether entries may have been lost when the file was damaged.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    unreadable: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    salvaged: bool = False


def write_document(kind: DocumentKind[Any], text: DocumentText) -> bytes:
    """The bytes of a file."""
    entries = {to_text_column(name): _entry_to_json(kind, entry) for name, entry in text.entries.items()}
    whole: dict[str, Any] = {"version": _VERSION}
    if text.salvaged:
        whole["salvaged"] = True
    whole |= {**text.extra, "entries": {**text.unreadable, **entries}}
    written = json.dumps(whole, ensure_ascii=False, indent=2)
    try:
        return written.encode() + b"\n"
    except UnicodeEncodeError:  # a person wrote the escape of half a character
        return json.dumps(whole, indent=2).encode() + b"\n"


def parse_document(kind: DocumentKind[Any], data: bytes, name: str) -> DocumentText:
    """What the bytes of a file say.

    Raises:
        StoreDamagedError: When they are no such document.
        StoreTooNewError: When a newer version wrote them.
    """
    try:
        whole = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise StoreDamagedError(f"{name}{_mistake(data, error)}", hint=_MEND) from error
    if not isinstance(whole, dict) or not isinstance(whole.get("entries"), dict):
        raise StoreDamagedError(f'{name} has no "entries"', hint=_MEND)
    version = whole.pop("version", _VERSION)
    if isinstance(version, int) and version > _VERSION:
        raise StoreTooNewError(
            f"{name} was written by a newer version of this package", hint="Update vllm-monitor, or use another folder."
        )
    entries = whole.pop("entries")
    text = DocumentText(salvaged=whole.pop("salvaged", False) is True, extra=whole)
    for key, tree in entries.items():
        _add(kind, text, key, tree)
    return text


def salvage_document(kind: DocumentKind[Any], data: bytes) -> DocumentText:
    """The entries that can be read in a damaged file, one by one."""
    source = data.decode("utf-8", "surrogateescape")
    decoder = json.JSONDecoder()
    text = DocumentText(salvaged=True)
    position = 0
    while found := _START_OF_OBJECT.search(source, position):
        position = found.end()
        try:
            tree, end = decoder.raw_decode(source, position)
            key = json.loads(found[1])
        except ValueError:
            continue  # it is broken inside: what it holds is tried one by one
        except RecursionError:
            position = _end_of_object(source, position)  # no entry of ours, nor is anything in it
            continue
        if _UNREADABLE.search(source, found.start(), end) or not _looks_like_entry(kind, tree):
            continue
        _add(kind, text, key, tree)
        position = end
    return text


def _end_of_object(source: str, start: int) -> int:
    """Where the object that begins at a place ends; the end of the text when it does not."""
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(source, start):
        depth += (found[0] in "{[") - (found[0] in "}]")
        if depth == 0:
            return found.end()
    return len(source)


def _mistake(data: bytes, error: Exception) -> str:
    """Where a text is no JSON, and why."""
    if isinstance(error, json.JSONDecodeError):
        return f", line {error.lineno}, column {error.colno}: {error.msg[:1].lower()}{error.msg[1:]}"
    if isinstance(error, UnicodeDecodeError):
        start = error.start + len(data) - len(error.object)  # it counts from behind a byte order mark
        lines = data[:start].decode("utf-8-sig").split("\n")
        return f", line {len(lines)}, column {len(lines[-1]) + 1}: not UTF-8"
    if isinstance(error, RecursionError):
        return " is nested too deeply"
    return f" is no JSON: {error}"


def _looks_like_entry(kind: DocumentKind[Any], tree: dict[str, Any]) -> bool:
    if "revision" in tree and "modified_at" in tree:
        return True
    return bool(kind.required) and not kind.missing(tree)


def _add(kind: DocumentKind[Any], text: DocumentText, key: str, tree: Any) -> None:
    try:
        name = from_text_column(key)
        text.entries[name] = _entry_of_json(kind, tree)
    except StoreDamagedError:
        text.unreadable[key] = tree


def _entry_to_json(kind: DocumentKind[Any], entry: Entry) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "revision": entry.revision,
        "modified_at": entry.modified_at,
        "deleted": entry.deleted,
        **{name: json.loads(text) for name, text in entry.fields.items()},
    }
    if kind is PLUGINS and "source" in entry.fields:
        tree["sha256"] = _sha256_of_source(entry.fields["source"])
    tree["checksum"] = _checksum(entry.fields, deleted=entry.deleted)
    return tree


def _entry_of_json(kind: DocumentKind[Any], tree: Any) -> Entry:
    if not isinstance(tree, dict) or type(tree.get("deleted", False)) is not bool:
        raise StoreDamagedError("no entry", hint="Mend the entry.")
    revision, modified_at, deleted = tree.get("revision"), tree.get("modified_at"), tree.get("deleted", False)
    shown = (*_OURS, "sha256") if kind is PLUGINS else _OURS
    fields = {} if deleted else {name: json_text(value) for name, value in tree.items() if name not in shown}
    edited = tree.get("checksum") != _checksum(fields, deleted=deleted)
    plain_revision = revision if type(revision) is int and revision >= 0 else 0
    plain_time = float(modified_at) if isinstance(modified_at, (int, float)) and abs(modified_at) < _LATEST else 0.0
    return Entry(plain_revision + edited, plain_time, deleted, fields, edited)


def _sha256_of_source(text: str) -> str:
    try:
        source = decode_value(text)
    except StoreDamagedError:
        return ""
    if not isinstance(source, str):
        return ""
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


def _checksum(fields: Mapping[str, str], *, deleted: bool) -> str:
    canonical = json.dumps([deleted, sorted(fields.items())], separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()
