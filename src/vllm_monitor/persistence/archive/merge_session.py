"""What merging into a store stands on: a connection of its own, short transactions, and numbers for names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Connection, insert, select, text

from vllm_monitor.errors import StoreUnavailableError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.codecs.text_column import to_text_column
from vllm_monitor.persistence.samples.identities import Identities, layout_of_series
from vllm_monitor.persistence.samples.sample_rows import SeriesName
from vllm_monitor.persistence.sql_store import OWN_ORIGIN, SqlStore
from vllm_monitor.persistence.sqlite_file import DATABASE_ERRORS, Fault, cause_of, fault_of

__all__ = ["MergeSession", "Place"]

_ATTEMPTS = 6  # each waits ``durable_timeout_seconds`` for the other writers

Answer = TypeVar("Answer")
Place = tuple[int, int]
"""Number of an origin and of a stream."""


class MergeSession:
    """A second writer of an open store, beside its own one. Not for several threads at once.

    Other threads and processes write meanwhile, so nothing is held between two calls: what one transaction saw is
    looked at again in the next.

    Args:
        store: The store that is written.
    """

    def __init__(self, store: SqlStore) -> None:
        self.store = store
        self._identities = Identities()
        self._origins: dict[str, int] = {}

    def write(self, work: Callable[[Connection], Answer]) -> Answer:
        """Run ``work`` in a short transaction of its own and commit it.

        Raises:
            StoreUnavailableError: When other writers do not let us, or the disk does not.
        """
        return self._run("IMMEDIATE", work)

    def read(self, work: Callable[[Connection], Answer]) -> Answer:
        """Run ``work``, which only reads, on one view of the store. Raises as :meth:`write`."""
        return self._run("DEFERRED", work)

    def guard(self, work: Callable[[], None]) -> None:
        """Run ``work``, which writes files beside the database. Raises as :meth:`write`."""
        try:
            work()
        except OSError as error:
            raise self._unavailable(error) from error

    def place(self, connection: Connection, origin_store_id: str, target: str, source: str) -> Place:
        """The numbers of an origin and a stream, which are added when they are new."""
        return self.origin(connection, origin_store_id), self._identities.stream(connection, target, source)

    def known_place(self, connection: Connection, origin_store_id: str, target: str, source: str) -> Place | None:
        """The numbers of an origin and a stream; ``None`` when one of them is new."""
        origins, streams, targets = schema.origins, schema.streams, schema.targets
        origin = connection.execute(select(origins.c.id).where(origins.c.store_id == origin_store_id)).scalar()
        query = (
            select(streams.c.id)
            .join_from(streams, targets)
            .where(targets.c.target == to_text_column(target), streams.c.source == to_text_column(source))
        )
        stream = connection.execute(query).scalar()
        return None if origin is None or stream is None else (int(origin), int(stream))

    def reserve_sequences(self, connection: Connection, place: Place, last: int) -> None:
        """Never give these sequences again: samples of our own come back that an older copy of us knows nothing of."""
        if place[0] == OWN_ORIGIN:
            raw = "UPDATE sqlite_sequence SET seq = max(seq, :last) WHERE name = 'metrics'"
            if connection.execute(text(raw), {"last": last}).rowcount == 0:
                connection.execute(
                    text("INSERT INTO sqlite_sequence (name, seq) VALUES ('metrics', :last)"), {"last": last}
                )

    def layout(
        self, connection: Connection, stream_id: int, names: Sequence[SeriesName], *, is_loose: bool = False
    ) -> int:
        """The number of a layout that a stream has, added when it is new; ``is_loose`` for one of single samples."""
        if is_loose:
            numbers = self._identities.series_of_names(connection, stream_id, names)
            return layout_of_series(connection, stream_id, numbers, is_loose=True)
        return self._identities.layout_of_names(connection, stream_id, names)

    def series(self, connection: Connection, stream_id: int, names: Sequence[SeriesName]) -> list[int]:
        """The numbers of series that a stream has as single samples, added when they are new."""
        return self._identities.series_of_names(connection, stream_id, names)

    def origin(self, connection: Connection, store_id: str) -> int:
        """The number of a store that samples first arrived in, added when it is new."""
        known = self._origins.get(store_id)
        if known is None:
            table = schema.origins
            query = select(table.c.id).where(table.c.store_id == store_id)
            known = connection.execute(query).scalar()
            if known is None:
                connection.execute(insert(table), {"store_id": store_id})
                known = connection.execute(query).scalar_one()
            self._origins[store_id] = known
        return known

    def _run(self, begin: str, work: Callable[[Connection], Answer]) -> Answer:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self._transaction(begin) as connection:
                    return work(connection)
            except (*DATABASE_ERRORS, OSError) as error:
                if fault_of(error) is not Fault.BUSY or attempt == _ATTEMPTS:
                    raise self._unavailable(error) from error
        raise AssertionError  # pragma: no cover - the last attempt returns or raises

    def _unavailable(self, error: BaseException) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"{self.store.path} cannot be read or written: {cause_of(error)}",
            hint="Check its disk and permissions, then do it again; what is there already is left out.",
        )

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Connection]:
        self._identities.bound()
        # One for each transaction: between two of them the process may be forked.
        connection = self.store.connect().execution_options(begin=begin)
        try:
            with connection.begin():
                yield connection
        except BaseException:
            # Numbers may have come from rows that are rolled back now.
            self._identities.forget()
            self._origins.clear()
            raise
        finally:
            self.store.release(connection)
