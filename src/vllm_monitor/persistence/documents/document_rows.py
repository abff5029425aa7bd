"""Entries of documents as rows of the table ``documents``, and back.

``content`` is a JSON object of the fields, packed when it is longer than 4 KiB; ``checksum`` is the BLAKE2b (8 bytes,
hexadecimal) of the JSON array of the other columns but ``id``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence.codecs.columns import pack_text, unpack_text
from vllm_monitor.persistence.codecs.text_column import to_text_column
from vllm_monitor.persistence.documents.documents import Entry, json_text

__all__ = ["DOCUMENT_COLUMNS", "document_checksum", "entry_of_row", "row_of_entry"]

DOCUMENT_COLUMNS = ("kind", "name", "revision", "modified_at", "deleted", "content")
"""The columns that ``checksum`` covers, in order."""


def document_checksum(row: Mapping[str, Any]) -> str:
    """What ``checksum`` of a row must be."""
    canonical = json.dumps([row[name] for name in DOCUMENT_COLUMNS], separators=(",", ":"), default=repr)
    return hashlib.blake2b(canonical.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def row_of_entry(kind_name: str, name: str, entry: Entry, *, compress: bool) -> dict[str, Any]:
    """The row of an entry."""
    content = "{" + ",".join(f"{json_text(field)}:{text}" for field, text in entry.fields.items()) + "}"
    row = {
        "kind": kind_name,
        "name": to_text_column(name),
        "revision": entry.revision,
        "modified_at": entry.modified_at + 0.0,
        "deleted": int(entry.deleted),
        "content": pack_text(content) if compress else content,
    }
    row["checksum"] = document_checksum(row)
    return row


def entry_of_row(row: Mapping[str, Any]) -> Entry:
    """The entry of a row.

    Raises:
        StoreDamagedError: When the row is not what was stored.
    """
    if row["checksum"] != document_checksum(row):
        raise StoreDamagedError("a row of documents does not match its checksum", hint="Run vllm-monitor check.")
    try:
        content = json.loads(unpack_text(row["content"]))
        fields = {field: json_text(tree) for field, tree in content.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise StoreDamagedError("a row of documents cannot be read", hint="Run vllm-monitor check.") from error
    return Entry(row["revision"], row["modified_at"], bool(row["deleted"]), fields)
