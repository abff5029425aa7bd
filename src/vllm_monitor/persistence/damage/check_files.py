"""What a store keeps beside its database, verified: documents, arrays of models, lines of the JSON backend."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vllm_monitor.errors import StorageError, StoreDamagedError
from vllm_monitor.persistence.config import PersistenceConfig, StorageBackend
from vllm_monitor.persistence.documents.document_stores import FileDocuments
from vllm_monitor.persistence.documents.document_text import parse_document
from vllm_monitor.persistence.documents.documents import DOCUMENT_KINDS, DocumentKind
from vllm_monitor.persistence.json_backend.json_lines import read_lines
from vllm_monitor.persistence.models.model_store import ModelStore, verify_arrays
from vllm_monitor.persistence.plain_file import read_plain
from vllm_monitor.persistence.sqlite_file import Fault, fault_of

__all__ = ["CheckedFile", "check_documents", "check_lines", "check_model_files"]


class CheckedFile(NamedTuple):
    """A part of a file: what it belongs to, which one it is, and what is wrong with it (empty: nothing)."""

    where: str
    name: str
    problem: str = ""


def check_documents(config: PersistenceConfig) -> Iterator[CheckedFile]:
    """Every entry of every document that is a file."""
    if config.backend is StorageBackend.SQLITE:
        return
    documents = FileDocuments(config, lambda _path, _aside, _entries: None)
    for kind in DOCUMENT_KINDS.values():
        path = documents.path_of(kind)
        try:
            text = parse_document(kind, read_plain(path), path.name)
        except FileNotFoundError:
            continue
        except StoreDamagedError as error:
            problem = error.message.removeprefix(path.name).lstrip(", ")
            yield CheckedFile(kind.name, path.name, f"{problem}; {_in_force(documents, kind)}")
            continue
        except (StorageError, OSError) as error:
            yield CheckedFile(kind.name, path.name, getattr(error, "message", str(error)))
            continue
        for key in text.unreadable:
            yield CheckedFile(kind.name, f"{key} in {path.name}", "it is no entry")
        for name, entry in text.entries.items():
            try:
                if not entry.deleted:
                    kind.record_of(name, entry)
            except StorageError as error:
                yield CheckedFile(kind.name, f"{name} in {path.name}", error.message)
            else:
                yield CheckedFile(kind.name, name)


def _in_force(documents: FileDocuments, kind: DocumentKind[Any]) -> str:
    try:
        good = documents.last_good(kind)
    except StorageError as error:
        return error.message
    return "no good version is kept" if good is None else "the last good version is in force"


def check_model_files(config: PersistenceConfig, connection: sqlite3.Connection) -> Iterator[CheckedFile]:
    """The arrays of every model that has them in a file; the caller holds no transaction."""
    models = ModelStore(config)
    names = ("model_name", "version", "file_name", "size_bytes", "sha256")
    query = f"SELECT {', '.join(names)} FROM models WHERE file_name IS NOT NULL"  # noqa: S608  # names of our schema
    try:
        rows = [dict(zip(names, row, strict=True)) for row in connection.execute(query)]
    except sqlite3.DatabaseError as error:
        if fault_of(error) is not Fault.DAMAGED:
            raise
        return  # the check of the table names what is lost
    for row in rows:
        try:
            verify_arrays(row, models.file_arrays(row))
        except FileNotFoundError:
            # A live writer removes the oldest version and then its file; only one that is still named is missing.
            if connection.execute("SELECT 1 FROM models WHERE file_name = ?", (row["file_name"],)).fetchone():
                yield CheckedFile("model files", row["file_name"], "the file is missing")
        except (StorageError, OSError, TypeError) as error:
            yield CheckedFile("model files", str(row["file_name"]), getattr(error, "message", str(error)))
        else:
            yield CheckedFile("model files", row["file_name"])


def check_lines(config: PersistenceConfig) -> Iterator[CheckedFile]:
    """Every line of every file of the JSON backend; a last line that is still being written is none."""
    if config.backend is not StorageBackend.JSON:
        return
    for path in _line_files(config):
        for number, line in enumerate(read_lines(path), 1):
            if not line.torn:
                problem = "" if line.fields is not None else "it does not match its checksum"
                yield CheckedFile("lines", f"line {number} of {path.name}", problem)


def _line_files(config: PersistenceConfig) -> list[Path]:
    return sorted(path for path in config.storage_dir.iterdir() if path.suffix == ".jsonl" and path.is_file())
