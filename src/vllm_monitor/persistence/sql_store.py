"""The store in an SQL database: what the writer writes and what readers look at.

Thread-safety: ``write``, ``commit``, ``rollback`` and ``close`` belong to one thread at a time; ``reading`` and
``connect`` may be used by any thread.
"""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, insert, select

from vllm_monitor.errors import StoreUnavailableError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.codecs.sample_values import code_of
from vllm_monitor.persistence.config import PersistenceConfig
from vllm_monitor.persistence.damage.sqlite_log import log_of
from vllm_monitor.persistence.forks.connection_gate import GATE
from vllm_monitor.persistence.forks.fork_hooks import FORKS
from vllm_monitor.persistence.forks.inherited_files import keep_for_ever
from vllm_monitor.persistence.pending import Batch, LooseSample, Scrape
from vllm_monitor.persistence.records.record_writer import write_records
from vllm_monitor.persistence.samples.identities import Identities
from vllm_monitor.persistence.samples.loose_codec import SPAN_MS, encode_loose
from vllm_monitor.persistence.samples.sample_rows import SeriesCatalogue
from vllm_monitor.persistence.samples.scrape_codec import (
    DELTA,
    KEYFRAME,
    KEYFRAME_INTERVAL,
    LOOSE,
    Bits,
    bits_of,
    encode_scrape,
    row_checksum,
)
from vllm_monitor.persistence.samples.store_query import StoreQuery
from vllm_monitor.persistence.sqlite_file import (
    DATABASE_ERRORS,
    Fault,
    fault_of,
    make_engine,
)

__all__ = ["EPOCH_KEY", "OWN_ORIGIN", "SqlStore"]

OWN_ORIGIN = 1
"""The number that a store has among its own ``origins``."""

EPOCH_KEY = "sealing_epoch"
"""The fact of ``store_meta`` that counts how often rows were taken out of ``metrics``.

A writer compares each scrape with the one before. Whoever takes rows out changes this number in the same
transaction, and every writer begins new runs as soon as it sees another number.
"""

_PIN = StoreQuery(select(schema.store_meta.c.key).limit(1))
_MOST_RUNS = 2_000
_NEXT_ROW = (
    "SELECT (SELECT seq FROM sqlite_sequence WHERE name = 'metrics'),"
    " (SELECT value FROM store_meta WHERE key = 'sealing_epoch')"
)
_INSERT_METRICS = (
    "INSERT INTO metrics (id, stream_id, kind, start_ms, end_ms, layout_id, previous_id, samples, payload, checksum)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_MetricsRow = tuple[int, int, int, int, int, int, int, int, bytes, int]


@dataclass(slots=True)
class _Run:
    """Where a run of scrapes stands: the next one is stored as its difference from this."""

    row_id: int
    bits: Bits
    length: int


class SqlStore:
    """An open database with its one writing connection.

    For a fork of the process all connections are closed; each is made again when it is next needed.

    Args:
        path: The database file.
        config: Settings.
        now: Unix seconds, noted when the store is new.
    """

    seals = True
    """Whether hot rows are sealed into blocks; a class that says no keeps them until they expire."""

    def __init__(self, path: Path, config: PersistenceConfig, now: float) -> None:
        self.path = path
        self.engine: Engine = make_engine(path, config)
        self.quarantined: Path | None = None
        self.catalogue = SeriesCatalogue()
        self._pool_lock = threading.Lock()
        self._closed = False
        self._is_inherited = False
        self._writing: Connection | None = None
        self._out: dict[int, int] = {}  # connections that are in use, and who has entered the gate for them
        self._identities = Identities()
        self._runs: OrderedDict[tuple[int, int], _Run] = OrderedDict()
        self._epoch: str | None = None
        try:
            self._file_number = path.stat().st_ino
            self._log_number: int | None = None
            with GATE.entered():
                self.store_id = self._introduce(now)
                FORKS.stores.add(self)
        except BaseException:
            self.engine.dispose()
            raise

    @property
    def _writer(self) -> Connection:
        if self._writing is None:
            self._check_ours()
            self._writing = self.engine.connect().execution_options(begin="IMMEDIATE")
        return self._writing

    @property
    def _raw(self) -> Any:
        # The hot insert goes past SQLAlchemy, whose bookkeeping would cost more than the insert.
        return self._writer.connection.dbapi_connection

    def _introduce(self, now: float) -> str:
        """The id of the store; made when it is new. Also proves that it can be written."""
        table = schema.store_meta
        with self._writer.begin():
            query = select(table.c.value).where(table.c.key == "store_id")
            found = self._writer.execute(query).scalar()
            if found is None:
                found = uuid.uuid4().hex
                facts = {"store_id": found, "created_at": repr(now)}
                self._writer.execute(insert(table), [{"key": key, "value": value} for key, value in facts.items()])
            if self._writer.execute(select(table.c.value).where(table.c.key == EPOCH_KEY)).scalar() is None:
                self._writer.execute(insert(table), {"key": EPOCH_KEY, "value": "0"})
            origins = schema.origins
            if self._writer.execute(select(origins.c.id).where(origins.c.id == OWN_ORIGIN)).first() is None:
                self._writer.execute(insert(origins), {"id": OWN_ORIGIN, "store_id": found})
        return str(found)

    def is_current(self) -> bool:
        """Whether the file is still the one that was opened (nobody renamed, removed or replaced it)."""
        try:
            return self.path.stat().st_ino == self._file_number
        except OSError:
            return False

    def log_was_removed(self) -> bool:
        """Whether somebody removed or replaced the write-ahead log under us. For the writer's thread."""
        try:
            number = log_of(self.path).stat().st_ino
        except FileNotFoundError:
            number = None
        except OSError:
            return False
        if self._log_number is None:
            self._log_number = number
        return number != self._log_number

    def save_removed_log(self) -> None:
        """Move what is in a log that was removed, and that only we still have open, into the file."""
        self._raw.execute("PRAGMA wal_checkpoint(FULL)")

    def reading(self) -> Connection:
        """A connection whose view of the database is fixed from now on; give it to :meth:`release`.

        Raises:
            StoreUnavailableError: When the store was closed meanwhile.
        """
        connection = self.connect()
        try:
            _PIN.rows(connection)
        except BaseException:
            self.release(connection)
            raise
        return connection

    def connect(self) -> Connection:
        """A connection without a transaction; give it to :meth:`release`. Waits while the process is being forked.

        Raises:
            StoreUnavailableError: When the store was closed meanwhile.
        """
        who = GATE.enter()
        try:
            with self._pool_lock:
                self._check_ours()
                if self._closed:
                    raise StoreUnavailableError(f"{self.path} was just closed", hint="It is opened again by itself.")
                connection = self.engine.connect()
            self._out[id(connection)] = who
        except BaseException:
            GATE.leave(who)
            raise
        return connection

    def release(self, connection: Connection) -> None:
        """Take back what :meth:`reading` or :meth:`connect` gave."""
        if self._is_inherited:
            keep_for_ever(connection)
            return
        try:
            if self._closed:
                connection.invalidate()  # its pool is gone, nobody would close it later
            connection.close()
        finally:
            GATE.leave(self._out.pop(id(connection)))

    def write(self, batch: Batch) -> None:
        """Write a batch, without committing it."""
        self._check_ours()
        self._identities.bound()
        self._writer.begin()
        rows: list[_MetricsRow] = []
        if batch.scrapes or batch.loose:
            next_id = self._next_row_id()
            self._add_scrapes(batch.scrapes, next_id, rows)
            self._add_loose(batch.loose, next_id, rows)
        if rows:
            self._raw.executemany(_INSERT_METRICS, rows)
        write_records(self._writer, batch.rare)

    def commit(self) -> None:
        """Make what was written durable."""
        self._check_ours()
        transaction = self._writer.get_transaction()
        if transaction is not None:
            transaction.commit()

    def rollback(self) -> None:
        """Forget what was written, and what was remembered of it."""
        self._identities.forget()
        self._runs.clear()
        transaction = None if self._writing is None or self._is_inherited else self._writing.get_transaction()
        if transaction is not None:
            transaction.rollback()

    def after_bulk_change(self) -> None:
        """Told after others than the writer have changed much (an import, retention); for stores that keep copies."""

    def checkpoint_log(self) -> None:
        """Move what is in the write-ahead log into the file, as far as readers allow."""
        self._raw.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Close every connection; SQLite moves its log into the file when it was the last."""
        if self._is_inherited:
            return
        with GATE.entered():
            try:
                if self._writing is not None:
                    self._writing.close()
            except DATABASE_ERRORS as error:
                if fault_of(error) is Fault.OTHER:
                    raise
            finally:
                with self._pool_lock:
                    self._closed = True
                    self.engine.dispose()

    def rest(self) -> None:
        """Close every connection for a fork. No thread may use one, and the writer may not have begun anything."""
        writing, self._writing = self._writing, None
        if writing is not None and not self._closed:
            writing.close()
        self.engine.dispose()
        self._log_number = None  # SQLite removes the log with the last connection

    def abandon(self) -> None:
        """In a forked child: leave this store to the parent. What is open must not even be closed here."""
        self._is_inherited = True
        keep_for_ever((self._writing, self.engine))

    def _check_ours(self) -> None:
        if self._is_inherited:
            raise StoreUnavailableError(
                f"{self.path} was opened by the process that this one was forked from",
                hint="Do this again: a child opens the store for itself.",
            )

    def size_bytes(self) -> int:
        """The file and its log."""
        names = (self.path, self.path.with_name(f"{self.path.name}-wal"))
        return sum(name.stat().st_size for name in names if name.exists())

    def _next_row_id(self) -> int:
        # Within our write transaction nobody else takes numbers, and nobody seals.
        last_id, epoch = self._raw.execute(_NEXT_ROW).fetchone()
        if epoch != self._epoch:
            self._runs.clear()
            self._epoch = epoch
        return int(last_id or 0) + 1

    def _add_scrapes(self, scrapes: Sequence[Scrape], next_id: int, rows: list[_MetricsRow]) -> None:
        for scrape in scrapes:
            stream_id = self._identities.stream(self._writer, scrape.target, scrape.source)
            layout_id = self._identities.layout(self._writer, stream_id, scrape.layout)
            bits = bits_of(scrape.values)
            row_id = next_id + len(rows)
            run = self._runs.get((stream_id, layout_id))
            if run is None or run.length >= KEYFRAME_INTERVAL:
                kind, previous_id = KEYFRAME, 0
                payload = encode_scrape(bits, None)
                self._runs[stream_id, layout_id] = _Run(row_id, bits, 1)
            else:
                kind, previous_id = DELTA, run.row_id
                payload = encode_scrape(bits, run.bits)
                run.row_id, run.bits, run.length = row_id, bits, run.length + 1
            self._runs.move_to_end((stream_id, layout_id))
            time_ms = scrape.time_ms
            checksum = row_checksum(kind, stream_id, layout_id, previous_id, time_ms, time_ms, payload)
            rows.append(
                (row_id, stream_id, kind, time_ms, time_ms, layout_id, previous_id, len(bits), payload, checksum)
            )
        while len(self._runs) > _MOST_RUNS:
            self._runs.popitem(last=False)

    def _add_loose(self, samples: Sequence[LooseSample], next_id: int, rows: list[_MetricsRow]) -> None:
        numbers = self._identities.loose(self._writer, (sample.series for sample in samples))
        groups: defaultdict[tuple[int, int], list[LooseSample]] = defaultdict(list)
        for sample in samples:
            # A row lies within one slot of time, so a range of time is a range of the index.
            groups[numbers[id(sample.series)][0], sample.time_ms // (SPAN_MS + 1)].append(sample)
        for (stream_id, _), group in groups.items():
            times = [sample.time_ms for sample in group]
            start_ms = min(times)
            payload = encode_loose(
                start_ms,
                times,
                [numbers[id(sample.series)][1] for sample in group],
                [float(sample.value) for sample in group],
                [code_of(sample.value) for sample in group],
                {at: sample.metadata_json for at, sample in enumerate(group) if sample.metadata_json is not None},
            )
            end_ms = max(times)
            checksum = row_checksum(LOOSE, stream_id, 0, 0, start_ms, end_ms, payload)
            rows.append((next_id + len(rows), stream_id, LOOSE, start_ms, end_ms, 0, 0, len(group), payload, checksum))
