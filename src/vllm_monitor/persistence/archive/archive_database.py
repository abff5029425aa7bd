"""The database of an archive, opened and verified as if an enemy had made it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Table, create_engine, select
from sqlalchemy.pool import NullPool

from vllm_monitor.errors import ArchiveError, StoreDamagedError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.archive.archive_schema import objects_of, refuse_other_objects
from vllm_monitor.persistence.codecs.column_types import wrong_column
from vllm_monitor.persistence.codecs.columns import Form, unpacked_bytes
from vllm_monitor.persistence.damage.stored_rows import VERIFIED_TABLES, verify_row
from vllm_monitor.persistence.records.rare_kinds import ALL_KINDS
from vllm_monitor.persistence.samples.block_rows import BlockKind
from vllm_monitor.persistence.samples.blocks.codec import BlockReader, block_reader
from vllm_monitor.persistence.samples.blocks.loose_block import decode_loose_block
from vllm_monitor.persistence.samples.rollup_codec import RollupReader
from vllm_monitor.persistence.sqlite_file import DATABASE_ERRORS, cause_of

__all__ = ["ArchiveVerifier", "connect_defensively", "opened_archive", "verify_structure"]

LARGEST_CELL_BYTES = 256 << 20
LARGEST_UNPACKED_BYTES = 64 << 20
LARGEST_BLOCK_CELLS = 1 << 24
LARGEST_NUMBER = 1 << 53
_ROWS_PER_QUERY = 200
_HINT = "Nothing was imported. Make the archive again with vllm-monitor export, or fetch another copy of it."
_PACKED_COLUMNS = {kind.table: [name for name, form in kind.forms.items() if form is Form.PACKED] for kind in ALL_KINDS}


def connect_defensively(path: Path) -> sqlite3.Connection:
    """A connection that only reads, believes nothing that the file says of itself, and leaves nothing beside it."""
    uri = f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    connection.text_factory = _lenient_text
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_CELL_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0", "query_only=ON"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def verify_structure(path: Path, revision: str) -> None:
    """Check that a database has the tables of a revision and nothing else, and that SQLite finds no damage.

    Raises:
        ArchiveError: When it has anything else.
    """
    with _as_archive_error(), closing(connect_defensively(path)) as connection:
        refuse_other_objects(objects_of(connection), revision)
        found = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        if found != [(revision,)]:
            raise ArchiveError(f"the database has schema {found!r}, its manifest says {revision}", hint=_HINT)
        complaint = connection.execute("PRAGMA quick_check(1)").fetchone()
        if complaint != ("ok",):
            raise ArchiveError(f"the database is damaged: {complaint[0]}", hint=_HINT)


@contextmanager
def opened_archive(path: Path) -> Iterator[Connection]:
    """A connection to the database of an archive, whose structure was verified."""
    engine = create_engine("sqlite+pysqlite://", creator=lambda: connect_defensively(path), poolclass=NullPool)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


class ArchiveVerifier:
    """Checks every row: its checksum, its size, and that what it names is there. Use it once.

    Args:
        connection: From :func:`opened_archive`.
        on_rows: Told how many rows were checked, again and again.
    """

    def __init__(self, connection: Connection, on_rows: Callable[[int], None]) -> None:
        self._connection = connection
        self._on_rows = on_rows
        self._series: set[int] = set()
        self._columns: dict[int, int] = {}
        self._sources: dict[int, str] = {}
        self._origins: set[int] = set()

    def run(self) -> None:
        """Check everything.

        Raises:
            ArchiveError: At the first row that is not as it must be.
        """
        with _as_archive_error():
            for table in (schema.metrics, schema.documents):
                if self._connection.execute(select(table.c.id).limit(1)).first() is not None:
                    raise ArchiveError(f"the database has rows in {table.name}, where no archive has any", hint=_HINT)
            for name in VERIFIED_TABLES:
                for row in self._rows_of(schema.metadata.tables[name]):
                    self._verify(name, row)
                    self._on_rows(1)

    def _verify(self, table: str, row: Mapping[str, Any]) -> None:
        wrong = wrong_column(table, row)
        if wrong is not None:
            raise StoreDamagedError(f"{wrong} of a row of {table} is {type(row[wrong]).__name__}", hint=_HINT)
        for column in _PACKED_COLUMNS.get(table, ()):
            if unpacked_bytes(row[column], LARGEST_UNPACKED_BYTES) > LARGEST_UNPACKED_BYTES:
                raise StoreDamagedError(f"{column} unpacks to more than {LARGEST_UNPACKED_BYTES} bytes", hint=_HINT)
        verify_row(table, row)
        if table == "series":
            self._series.add(row["id"])
        elif table == "layouts":
            numbers = json.loads(row["series_ids"])
            self._must_be_in(self._series, numbers, "a layout names series")
            self._columns[row["id"]] = len(numbers)
        elif table == "streams":
            self._sources[row["id"]] = row["source"]
        elif table == "origins":
            self._origins.add(row["id"])
        elif table in ("blocks", "rollups"):
            self._must_be_in(self._sources.keys(), [row["stream_id"]], "a block names streams")
            self._must_be_in(self._origins, [row["origin_id"]], "a block names origins")
            if max(abs(row["start_ms"]), abs(row["end_ms"])) > LARGEST_NUMBER:
                raise StoreDamagedError(f"{table} hold samples of no time", hint=_HINT)
            if table == "rollups":
                self._verify_rollup(row)
            else:
                self._verify_block(row)

    def _verify_block(self, row: Mapping[str, Any]) -> None:
        if row["kind"] == BlockKind.SCRAPES:
            reader = self._verify_matrix(row, row["scrapes"])
            times, sequences = reader.times_ms(), reader.sequences()
            most = reader.rows * reader.column_count
            is_ordered = bool((sequences[1:] > sequences[:-1]).all())
        else:
            loose = decode_loose_block(row["payload"])
            times, sequences, most = loose.times_ms, loose.sequences, len(loose.values)
            is_ordered = int(loose.positions.min(initial=0)) >= 0
            self._must_be_in(self._series, loose.series_ids.tolist(), "single samples name series")
        said = (row["start_ms"], row["end_ms"], row["first_sequence"], row["last_sequence"])
        if not len(times) or said != (times.min(), times.max(), sequences.min(), sequences.max()):
            raise StoreDamagedError(f"block {row['id']} holds other samples than it says", hint=_HINT)
        if not is_ordered or sequences.min() < 0 or sequences.max() > LARGEST_NUMBER:
            raise StoreDamagedError(f"block {row['id']} numbers its samples wrongly", hint=_HINT)
        if not 0 <= row["samples"] <= most:
            raise StoreDamagedError(f"block {row['id']} counts its samples wrongly", hint=_HINT)
        if (row["kind"] == BlockKind.LOOSE) != (self._sources[row["stream_id"]] == ""):
            raise StoreDamagedError(f"block {row['id']} is in a stream of another kind", hint=_HINT)

    def _verify_rollup(self, row: Mapping[str, Any]) -> None:
        payload: bytes = row["payload"]
        reader = RollupReader(lambda offset, length: payload[offset : offset + length], len(payload))
        starts = reader.read([]).bucket_ms
        columns = self._columns.get(row["layout_id"])
        if columns != len(reader.forms) or len(starts) != row["buckets"]:
            raise StoreDamagedError(f"roll-up {row['id']} has other rows or columns than it says", hint=_HINT)
        if len(starts) * max(1, columns) > LARGEST_BLOCK_CELLS:
            raise StoreDamagedError(f"{len(starts)} x {columns} buckets are in one roll-up", hint=_HINT)
        step_ms = row["step_seconds"] * 1000
        is_within = (
            0 < step_ms <= LARGEST_NUMBER and starts.min() > row["start_ms"] - step_ms and starts.max() <= row["end_ms"]
        )
        if not is_within or bool((starts[1:] <= starts[:-1]).any()):
            raise StoreDamagedError(f"roll-up {row['id']} holds other times than it says", hint=_HINT)

    def _verify_matrix(self, row: Mapping[str, Any], rows: int) -> BlockReader:
        reader = block_reader(row["payload"])
        if reader.rows * max(1, reader.column_count) > LARGEST_BLOCK_CELLS:
            raise StoreDamagedError(f"{reader.rows} x {reader.column_count} samples are in one block", hint=_HINT)
        if reader.rows != rows or self._columns.get(row["layout_id"]) != reader.column_count:
            raise StoreDamagedError(f"block {row['id']} has other rows or columns than it says", hint=_HINT)
        return reader

    def _rows_of(self, table: Table) -> Iterator[dict[str, Any]]:
        key = next(iter(table.primary_key.columns))
        last: Any = None
        while True:
            query = select(table).order_by(key).limit(1 if "payload" in table.c else _ROWS_PER_QUERY)
            if last is not None:
                query = query.where(key > last)
            found = self._connection.execute(query).mappings()
            rows = [{str(name): value for name, value in row.items()} for row in found]
            if not rows:
                return
            last = rows[-1][key.name]
            yield from rows

    def _must_be_in(self, known: AbstractSet[int], numbers: Iterable[Any], what: str) -> None:
        if not all(number in known for number in numbers):
            raise StoreDamagedError(f"{what} that are not in the archive", hint=_HINT)


@contextmanager
def _as_archive_error() -> Iterator[None]:
    try:
        yield
    except DATABASE_ERRORS as error:
        raise ArchiveError(f"the database cannot be read: {cause_of(error)}", hint=_HINT) from error
    except StoreDamagedError as error:
        raise ArchiveError(f"the database is damaged: {error.message}", hint=_HINT) from error


def _lenient_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
