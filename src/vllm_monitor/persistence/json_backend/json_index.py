"""The SQLite index of a store of the JSON backend, made from its lines."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, bindparam, func, insert, select, text
from sqlalchemy.dialects import sqlite

from vllm_monitor.errors import StoreDamagedError, StoreTooNewError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.config import PersistenceConfig
from vllm_monitor.persistence.json_backend.json_imported import ImportedLoader, RollupLoader, origin_number
from vllm_monitor.persistence.json_backend.json_lines import LINES_FILE, Line, read_lines
from vllm_monitor.persistence.json_backend.json_loader import OwnLoader
from vllm_monitor.persistence.json_backend.json_sample_parser import SampleParser
from vllm_monitor.persistence.json_backend.json_tables import FORMAT, RECORD_TABLES, SAMPLE_TABLES, file_of, key_of
from vllm_monitor.persistence.json_backend.json_values import row_of
from vllm_monitor.persistence.plain_file import read_plain
from vllm_monitor.persistence.private_file import put_aside
from vllm_monitor.persistence.samples.identities import Identities
from vllm_monitor.persistence.sql_store import OWN_ORIGIN
from vllm_monitor.persistence.sqlite_file import DATABASE_ERRORS, make_engine

__all__ = ["IndexBuilder"]

_LOG = logging.getLogger(__name__)
_LINES_PER_TRANSACTION = 2_000
_MOST_REASONS = 3
_SUFFIXES = ("", "-wal", "-shm", "-journal")


@dataclass(slots=True)
class IndexBuilder:
    """Makes the index of a folder, and sets aside what cannot be read. Use it once, holding the lock of the store.

    A line at the end of a file that lacks its line feed is not whole (its writer ended while it was written, or the
    file was cut): it is kept in ``FILE.torn``. Any other line that cannot be read is kept in ``FILE.damaged-TIME``.
    Every file has one line in the log about what was set aside of it.

    Args:
        config: Settings.
        path: The index; what is there is replaced.
        now: Unix seconds.
        damaged: Names of the tables whose files have lines that must be left out when they are written again.
        set_aside: The files with lines that could not be read.
        is_new: Whether no line says yet which store this is.
    """

    config: PersistenceConfig
    path: Path
    now: float
    damaged: set[str] = field(default_factory=set)
    set_aside: list[Path] = field(default_factory=list)
    is_new: bool = True
    _asides: dict[str, Path] = field(default_factory=dict)
    _reasons: Counter[str] = field(default_factory=Counter)
    _store: dict[str, Any] = field(default_factory=dict)

    def build(self) -> None:
        """Make it.

        Raises:
            StoreTooNewError: When a newer version wrote the lines; they were not touched.
            OSError, sqlite3.Error, DBAPIError: When files cannot be read or written.
        """
        self._refuse_newer()
        for suffix in _SUFFIXES:
            self.path.with_name(f"{self.path.name}{suffix}").unlink(missing_ok=True)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        engine = make_engine(self.path, self.config)
        try:
            with engine.connect().execution_options(begin="IMMEDIATE") as connection:
                _make_schema(connection)
                self._load_own(connection)
                self._load_imported(connection)
                for name in RECORD_TABLES:
                    self._load_records(connection, schema.metadata.tables[name])
                self._load_happy_paths(connection)
        finally:
            engine.dispose()

    def _refuse_newer(self) -> None:
        for line in read_lines(self.config.storage_dir / LINES_FILE):
            if line.fields is not None and "store_id" in line.fields:
                if line.fields.get("format", FORMAT) > FORMAT:
                    raise StoreTooNewError(
                        f"{self.config.storage_dir} has lines of format {line.fields['format']},"
                        f" this version of vllm-monitor knows up to {FORMAT}",
                        hint="Upgrade vllm-monitor, or choose another storage_dir; nothing was touched.",
                    )
                return  # the first one that can be read tells

    def _load_own(self, connection: Connection) -> None:
        parser = self._parser("metrics")
        loader = OwnLoader(connection, Identities())

        def take(fields: Mapping[str, Any]) -> None:
            if "store_id" in fields:
                self._note_store(fields)
            elif (found := parser.parse(fields)) is not None:
                loader.add(found)

        self._load(connection, "metrics", take, loader.flush, loader.finish)
        last = max(loader.last_sequence, int(self._store.get("next_sequence", 1)) - 1)
        store_id = str(self._store.get("store_id") or uuid.uuid4().hex)
        facts = {"store_id": store_id, "created_at": str(self._store.get("created_at", repr(self.now)))}
        with connection.begin():
            connection.execute(insert(schema.store_meta), [{"key": key, "value": facts[key]} for key in facts])
            connection.execute(insert(schema.origins), {"id": OWN_ORIGIN, "store_id": store_id})
            _reserve_sequences(connection, last)

    def _note_store(self, fields: Mapping[str, Any]) -> None:
        self.is_new = False
        self._store.setdefault("store_id", fields["store_id"])
        self._store.setdefault("created_at", fields.get("created_at", repr(self.now)))
        self._store["next_sequence"] = max(self._store.get("next_sequence", 1), fields.get("next_sequence", 1))

    def _load_imported(self, connection: Connection) -> None:
        identities = Identities()
        blocks, block_parser = ImportedLoader(connection, identities), self._parser("blocks")

        def take_sample(fields: Mapping[str, Any]) -> None:
            if (found := block_parser.parse(fields)) is not None:
                blocks.add(found)

        self._load(connection, "blocks", take_sample, blocks.flush, blocks.finish)
        own = schema.blocks.c.origin_id == OWN_ORIGIN  # samples of ours that came home in an archive
        with connection.begin():
            _reserve_sequences(
                connection, connection.execute(select(func.max(schema.blocks.c.last_sequence)).where(own)).scalar() or 0
            )
        rollups, rollup_parser = RollupLoader(connection, identities), self._parser("rollups")

        def take_rollup(fields: Mapping[str, Any]) -> None:
            if "series" in fields:
                rollup_parser.parse(fields)
            else:
                rollups.add(fields, rollup_parser.layout(str(fields.get("layout"))))

        self._load(connection, "rollups", take_rollup, _nothing, _nothing)

    def _load_records(self, connection: Connection, table: Table) -> None:
        key = key_of(table)
        columns = [column.name for column in table.columns if column.name != "id"]
        statement = sqlite.insert(table).values({name: bindparam(name) for name in columns})
        upsert = statement.on_conflict_do_update(
            index_elements=key, set_={name: statement.excluded[name] for name in columns if name not in key}
        )

        def take(fields: Mapping[str, Any]) -> None:
            row = row_of(table, fields)
            if "origin" in fields and "origin_id" in table.c:
                row["origin_id"] = origin_number(connection, str(fields["origin"]))
            missing = {column.name for column in table.columns if not column.nullable} - row.keys() - {"id"}
            if missing:
                raise StoreDamagedError(f"a line of {table.name} lacks {sorted(missing)}", hint="It is set aside.")
            try:
                connection.execute(upsert, {name: row.get(name) for name in columns})
            except DATABASE_ERRORS as error:  # a value that no column holds: the statement alone is undone
                raise StoreDamagedError(f"a line of {table.name} makes no row", hint="It is set aside.") from error

        self._load(connection, table.name, take, _nothing, _nothing)

    def _load_happy_paths(self, connection: Connection) -> None:
        path = self.config.storage_dir / self.config.happy_paths_file
        if not path.exists():
            return
        raw = read_plain(path)
        try:
            entries = dict(json.loads(raw)["entries"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            _LOG.error("%s was set aside, it cannot be read: %s", path, error)
            self._put_aside("happy_paths", path, raw)
            return
        with connection.begin():
            for path_id, fields in entries.items():
                try:
                    row = {"path_id": path_id, **row_of(schema.happy_paths, fields)}
                    connection.execute(insert(schema.happy_paths), row)
                except (TypeError, ValueError, StoreDamagedError, *DATABASE_ERRORS) as error:
                    _LOG.error("happy path %s of %s was set aside: %s", path_id, path, error)
                    self._put_aside("happy_paths", path, json.dumps({path_id: fields}).encode() + b"\n")

    def _load(
        self,
        connection: Connection,
        name: str,
        take: Callable[[Mapping[str, Any]], None],
        flush: Callable[[], None],
        finish: Callable[[], None],
    ) -> None:
        """Give the lines of a file to ``take``, some thousand in a transaction."""
        path = self.config.storage_dir / file_of(name)
        lines = read_lines(path)
        more = True
        while more:
            with connection.begin():
                more = False
                for number, line in enumerate(lines, 1):
                    self._take(name, path, line, take)
                    if number == _LINES_PER_TRANSACTION:
                        more = True
                        break
                (flush if more else finish)()
        if self._reasons:
            told = "; ".join(f"{number} times: {reason}" for reason, number in self._reasons.most_common(_MOST_REASONS))
            _LOG.error(
                "%d lines of %s were set aside in %s, the others are kept (%s)",
                self._reasons.total(), path, self._asides[name], told,
            )  # fmt: skip
            self._reasons.clear()

    def _take(self, name: str, path: Path, line: Line, take: Callable[[Mapping[str, Any]], None]) -> None:
        if line.torn:
            torn = path.with_name(f"{path.name}.torn")
            _LOG.warning(
                "the last line of %s was not whole and was set aside in %s (its writer ended meanwhile, or it was cut)",
                path, torn,
            )  # fmt: skip
            _append(torn, line.raw)
            os.truncate(path, line.offset)
            return
        try:
            if line.fields is None:
                raise StoreDamagedError("it does not match its checksum", hint="It is set aside.")
            take(line.fields)
        except StoreDamagedError as error:
            self._reasons[error.message] += 1
            self._put_aside(name, path, line.raw)

    def _put_aside(self, name: str, path: Path, raw: bytes) -> None:
        self.damaged.add(name)
        if name not in self._asides:
            stamp = datetime.fromtimestamp(self.now, UTC).strftime("%Y%m%dT%H%M%S")
            self._asides[name] = put_aside(path, stamp)
            self.set_aside.append(self._asides[name])
        _append(self._asides[name], raw)

    def _parser(self, name: str) -> SampleParser:
        names = [name, *(other for other in SAMPLE_TABLES if other != name)]
        paths = [self.config.storage_dir / file_of(one) for one in names]

        def definitions() -> Iterator[Mapping[str, Any]]:
            lines = (line.fields for path in paths for line in read_lines(path))
            return (fields for fields in lines if fields is not None and "series" in fields)

        return SampleParser(definitions)


def _make_schema(connection: Connection) -> None:
    """The tables, at once: the index is new, so there is nothing to migrate."""
    raw: Any = connection.connection.dbapi_connection
    raw.execute("PRAGMA auto_vacuum=INCREMENTAL")
    raw.execute("PRAGMA journal_mode=WAL")
    with connection.begin():
        schema.metadata.create_all(connection)
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
        connection.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": schema.HEAD_REVISION})


def _reserve_sequences(connection: Connection, last: int) -> None:
    """Let no number up to ``last`` be given to a row of ``metrics`` again."""
    known = connection.execute(text("SELECT max(seq) FROM sqlite_sequence WHERE name = 'metrics'")).scalar() or 0
    connection.execute(text("DELETE FROM sqlite_sequence WHERE name = 'metrics'"))
    connection.execute(text("INSERT INTO sqlite_sequence VALUES ('metrics', :last)"), {"last": max(last, known)})


def _append(path: Path, raw: bytes) -> None:
    """Keep bytes in a file of what could not be read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def _nothing() -> None:
    """Rows are written as they come."""
