"""Work on the store beside its writer: in transactions so short that the writer hardly waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection

from vllm_monitor.clock import SystemClock
from vllm_monitor.persistence.sql_store import SqlStore

__all__ = ["ShortTransactions"]

_LEAST_REST_SECONDS = 0.005
_MOST_REST_SECONDS = 0.5


class ShortTransactions:
    """A connection for every transaction, and a rest after each that wrote. For one thread.

    Whoever waits for SQLite's write lock asks for it again and again, with pauses; one that wrote without a rest
    would hardly ever be found without the lock.

    Args:
        store: The store.
        should_stop: Asked between transactions; ``True`` ends the work early.
    """

    def __init__(self, store: SqlStore, should_stop: Callable[[], bool]) -> None:
        self.store = store
        self.should_stop = should_stop
        self._clock = SystemClock()
        self._nothing = threading.Event()
        self._wrote_seconds = 0.0

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection whose view of the store is fixed.

        Raises:
            StoreUnavailableError: When the store was closed meanwhile.
        """
        connection = self.store.reading()
        try:
            yield connection
        finally:
            self.store.release(connection)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that holds the write lock; committed at its end, undone by an exception."""
        connection = self.store.connect().execution_options(begin="IMMEDIATE")
        try:
            with connection.begin():
                began = self._clock.monotonic()
                yield connection
            self._wrote_seconds = self._clock.monotonic() - began
        finally:
            self.store.release(connection)

    def run_script(self, statement: str) -> None:
        """Run a statement that is a transaction of its own, to its end.

        A PRAGMA that does one piece of work for each row, and whose rows have no columns, does only the first piece
        when it is executed in the usual way.
        """
        connection = self.store.connect()
        try:
            raw: Any = connection.connection.dbapi_connection
            began = self._clock.monotonic()
            raw.executescript(statement)
            self._wrote_seconds = self._clock.monotonic() - began
        finally:
            self.store.release(connection)

    def rest(self) -> None:
        """Leave the lock to others for twice as long as it was held last."""
        self._nothing.wait(min(_MOST_REST_SECONDS, max(_LEAST_REST_SECONDS, 2 * self._wrote_seconds)))

    def repeat(self, step: Callable[[], int | None]) -> int:
        """Do something step by step until nothing is left (``None``); the sum of what the steps returned."""
        total = 0
        while not self.should_stop() and (done := step()) is not None:
            total += done
            self.rest()
        return total
