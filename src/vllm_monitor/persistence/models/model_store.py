"""Models as rows of the table ``models`` and, for their arrays, files in ``models_dir``.

``structure`` and ``metadata`` are packed when they are longer than 4 KiB; ``sha256`` and ``size_bytes`` are of the
arrays as stored, in the file or in the column ``arrays``; ``checksum`` is the BLAKE2b (8 bytes, hexadecimal) of the
JSON array of the columns from ``model_id`` to ``sha256``.

The file is complete and flushed before its row is committed, and has a name that no other version has: whatever
interrupts saving leaves the versions before it as they were, and at most a file that no row names.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, insert, select

from vllm_monitor.clock import SystemClock
from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.codecs.columns import pack_text
from vllm_monitor.persistence.codecs.text_column import from_text_column, to_text_column
from vllm_monitor.persistence.config import PersistenceConfig, StorageBackend
from vllm_monitor.persistence.damage.set_aside import waiting_files
from vllm_monitor.persistence.models.model_codec import EncodedModel
from vllm_monitor.persistence.private_file import (
    LONGEST_LOCK_WAIT_SECONDS,
    TEMPORARY_SUFFIX,
    retryable_lock,
    write_whole,
)
from vllm_monitor.persistence.private_folder import make_private_folder
from vllm_monitor.persistence.records.rare_rows import Row
from vllm_monitor.persistence.sql_store import SqlStore

__all__ = ["MODEL_COLUMNS", "ModelStore", "model_checksum", "remove_orphans", "verify_arrays", "verify_row"]

_LOG = logging.getLogger(__name__)

MODEL_COLUMNS = (
    "model_id",
    "model_name",
    "version",
    "timestamp",
    "structure",
    "metadata",
    "file_name",
    "size_bytes",
    "sha256",
)
"""The columns that ``checksum`` covers, in order."""

_SUFFIX = ".safetensors"
_PACKED_SUFFIX = ".safetensors.zlib"
_FILE_NAME = re.compile(r"[A-Za-z0-9_-]{1,110}\.safetensors(?:\.zlib)?")
_LONGEST_SHOWN_NAME = 60
_ORPHAN_SECONDS = 3600
"""A file that no row names may be one whose row is about to be committed, unless it is this old."""


def model_checksum(row: Mapping[str, Any]) -> str:
    """What ``checksum`` of a row must be."""
    canonical = json.dumps([row[name] for name in MODEL_COLUMNS], separators=(",", ":"), default=repr)
    return hashlib.blake2b(canonical.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


class ModelStore:
    """Writes and reads versions of models. Methods that take a connection run inside its transaction.

    Args:
        config: Says where arrays go, and how many versions are kept.
    """

    def __init__(self, config: PersistenceConfig) -> None:
        self._config = config
        self.folder = config.storage_dir / config.models_dir
        self.in_files = config.backend is not StorageBackend.SQLITE

    def row_of(self, model_id: str, name: str, timestamp: float, encoded: EncodedModel, metadata_text: str) -> Row:
        """The row of a new version; its number is given when it is written."""
        pack = pack_text if self._config.compression_enabled else str
        return {
            "model_id": model_id,
            "model_name": to_text_column(name),
            "version": 0,
            "timestamp": timestamp + 0.0,
            "structure": pack(encoded.structure),
            "metadata": pack(metadata_text),
            "file_name": self.file_name_of(name, model_id, packed=encoded.packed) if encoded.arrays else None,
            "size_bytes": len(encoded.arrays),
            "sha256": hashlib.sha256(encoded.arrays).hexdigest(),
        }

    def file_name_of(self, name: str, model_id: str, *, packed: bool) -> str | None:
        """The file of a version: a readable part of the name, and the id. ``None`` when arrays are in the table."""
        if not self.in_files:
            return None
        shown = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:_LONGEST_SHOWN_NAME]
        number = re.sub(r"[^A-Za-z0-9_-]", "_", model_id)[:40]
        return f"{shown}-{number}{_PACKED_SUFFIX if packed else _SUFFIX}"

    def put_file(self, row: Row, arrays: bytes) -> None:
        """Write the file of a row, unless it is there.

        Raises:
            OSError: When it cannot be written.
        """
        if row["file_name"] is None:
            return
        path = self.folder / row["file_name"]
        make_private_folder(self.folder)
        with _lock(self._config):
            try:
                if path.stat().st_size == len(arrays):
                    os.utime(path)  # so that it is no orphan for the next hour
                    return
            except FileNotFoundError:
                pass  # the usual case: it is written now
            write_whole(path, arrays)

    def write(self, connection: Connection, row: Row, arrays: bytes) -> list[str]:
        """Add a version, number it, and remove the oldest beyond ``model_versions_kept``.

        Args:
            connection: In its write transaction.
            row: As :meth:`row_of`; its ``version``, ``checksum`` and ``arrays`` are filled in. A version number
                that is not 0 is kept if it is free.
            arrays: Their bytes as stored.

        Returns:
            Names of files that are no longer needed once this is committed.

        Raises:
            OSError, DBAPIError: When it cannot be written.
        """
        table = schema.models
        found = connection.execute(select(table.c.version).where(table.c.model_id == row["model_id"])).scalar()
        if found is not None:
            return []  # an earlier attempt whose end was not known
        self.put_file(row, arrays)
        same = table.c.model_name == row["model_name"]
        versions = set(connection.execute(select(table.c.version).where(same)).scalars())
        if not row["version"] or row["version"] in versions:
            row["version"] = max(versions, default=0) + 1
        row["checksum"] = model_checksum(row)
        row["arrays"] = arrays if arrays and row["file_name"] is None else None
        connection.execute(insert(table), row)
        kept = self._config.model_versions_kept
        surplus = sorted({*versions, row["version"]})[:-kept]
        old = select(table.c.id, table.c.file_name).where(same & table.c.version.in_(surplus))
        return self._delete(connection, old)

    def delete(self, connection: Connection, name: str, version: int | None) -> list[str]:
        """Remove one version of a model, or all; the names of files that are no longer needed are returned."""
        table = schema.models
        wanted = select(table.c.id, table.c.file_name).where(table.c.model_name == to_text_column(name))
        return self._delete(connection, wanted if version is None else wanted.where(table.c.version == version))

    def rows(self, connection: Connection, name: str | None = None) -> list[Row]:
        """The rows of all models, or of one, oldest first, without their arrays; not verified."""
        table = schema.models
        query = select(*(column for column in table.c if column.name != "arrays")).order_by(table.c.id)
        if name is not None:
            query = query.where(table.c.model_name == to_text_column(name))
        return [{str(key): value for key, value in row.items()} for row in connection.execute(query).mappings()]

    def column_arrays(self, connection: Connection, row: Mapping[str, Any]) -> bytes:
        """The arrays of a row that are in the table; not verified."""
        table = schema.models
        found = connection.execute(select(table.c.arrays).where(table.c.model_id == row["model_id"])).scalar()
        return bytes(found) if found is not None else b""

    def file_arrays(self, row: Mapping[str, Any]) -> bytes:
        """The arrays of a row that are in a file; not verified.

        Raises:
            FileNotFoundError: When the file is gone.
            StoreDamagedError: When it is no file that a model has.
            OSError: When it cannot be read.
        """
        name = row["file_name"]
        if not _FILE_NAME.fullmatch(name):
            raise StoreDamagedError(f"a model names the file {name!r}", hint="Run vllm-monitor check.")
        descriptor = os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123  # a descriptor, which Path cannot open
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_size != row["size_bytes"]:
                raise StoreDamagedError(f"{name} is not what was stored", hint="Load an earlier version of the model.")
            return file.read()

    def arrays_of(self, connection: Connection, row: Mapping[str, Any]) -> bytes:
        """The arrays of a row, wherever they are, verified.

        Raises:
            StoreDamagedError: When row or arrays are not what was stored.
            OSError: When the file cannot be read.
        """
        verify_row(row)
        arrays = self.column_arrays(connection, row) if row["file_name"] is None else self.file_arrays(row)
        verify_arrays(row, arrays)
        return arrays

    def is_gone(self, engine: Engine, row: Mapping[str, Any]) -> bool:
        """Whether a row that an older view of the store shows has been removed since."""
        table = schema.models
        with engine.connect() as connection:
            query = select(table.c.id).where(table.c.model_id == row["model_id"])
            return connection.execute(query).first() is None

    def remove_files(self, names: list[str]) -> None:
        """Remove files that no row names any more; what cannot be removed is an orphan, see below."""
        for name in names:
            if _FILE_NAME.fullmatch(name):
                try:
                    (self.folder / name).unlink(missing_ok=True)
                except OSError as error:
                    _LOG.warning("the file of an old model stays for now: %s", error)

    def _delete(self, connection: Connection, wanted: Any) -> list[str]:
        table = schema.models
        rows = connection.execute(wanted).all()
        if rows:
            connection.execute(table.delete().where(table.c.id.in_([number for number, _ in rows])))
        return [name for _, name in rows if name is not None]


def verify_row(row: Mapping[str, Any]) -> None:
    """Check a row against its checksum.

    Raises:
        StoreDamagedError: When it does not match.
    """
    if row["checksum"] != model_checksum(row):
        raise StoreDamagedError(
            f"version {row['version']} of a model does not match its checksum",
            hint="Load another version of it; run vllm-monitor check.",
        )


def verify_arrays(row: Mapping[str, Any], arrays: bytes) -> None:
    """Check the arrays of a row.

    Raises:
        StoreDamagedError: When they are not what was stored.
    """
    if len(arrays) != row["size_bytes"] or hashlib.sha256(arrays).hexdigest() != row["sha256"]:
        raise StoreDamagedError(
            f"the arrays of version {row['version']} of {from_text_column(row['model_name'])!r} are damaged",
            hint="Load an earlier version of it; run vllm-monitor check.",
        )


def remove_orphans(store: SqlStore, config: PersistenceConfig) -> int:
    """Remove files of models that no row names and that are older than an hour; how many.

    For the maintenance step; any process may do it at any time.

    Raises:
        OSError, DBAPIError: When folder or database cannot be read.
    """
    models = ModelStore(config)
    # The rows of a damaged database that was set aside, which are to come back, name files, too.
    if not models.folder.is_dir() or waiting_files(config):
        return 0
    removed = 0
    with _lock(config):
        # Under the lock a file cannot be taken into use: that touches it, and then it is no longer old.
        oldest = SystemClock().now() - _ORPHAN_SECONDS
        connection = store.reading()
        try:
            table = schema.models
            named = set(connection.execute(select(table.c.file_name)).scalars())
        finally:
            store.release(connection)
        for path in models.folder.iterdir():
            ours = _FILE_NAME.fullmatch(path.name.removesuffix(TEMPORARY_SUFFIX))
            if ours and path.name not in named and path.lstat().st_mtime < oldest:
                path.unlink(missing_ok=True)
                removed += 1
    return removed


def _lock(config: PersistenceConfig) -> AbstractContextManager[None]:
    path: Path = config.storage_dir / "models.lock"
    return retryable_lock(path, min(LONGEST_LOCK_WAIT_SECONDS, config.durable_timeout_seconds))
