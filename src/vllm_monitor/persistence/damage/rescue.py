"""Everything that can be read from a damaged store, put into a whole one of the same tables.

Rows are carved out of the pages, and only those that match their checksum (where their table has none: their form)
are taken, so nothing comes out that was not put in. What came out is read like any store afterwards.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence.damage.damaged_table import DamagedTable
from vllm_monitor.persistence.damage.page_carver import CarvedRow, carve
from vllm_monitor.persistence.damage.rescued_store import RescuedStore
from vllm_monitor.persistence.damage.sqlite_pages import PageFile, PageView
from vllm_monitor.persistence.damage.stored_rows import VERIFIED_TABLES, may_be_row_of, row_from_values, verify_row
from vllm_monitor.persistence.sqlite_file import open_for_reading

__all__ = ["rescue"]

_LOG = logging.getLogger(__name__)
_PAGES_PER_REPORT = 256
_TIMEOUT_SECONDS = 1.0
_REPEATED_BY_INDEX = {"origins": ("store_id",), "targets": ("target",), "streams": ("target_id", "source")}


def rescue(
    damaged: Path, into: RescuedStore, *, advance: Callable[[int, int], None] = lambda _done, _total: None
) -> int:
    """Put every row that can be believed from a damaged file and its log into another store.

    Args:
        damaged: The file; it is only read.
        into: Where the rows go.
        advance: Told now and then how many pages of how many are done; what it raises ends the work.

    Returns:
        The number of rows that look like ours, but do not match their checksum or have lost a part.

    Raises:
        OSError: When the file cannot be read.
        sqlite3.Error: When the rows cannot be written.
    """
    lost = 0
    with PageFile(damaged) as file:
        for number, view in enumerate(file.views()):
            pages = range(1, view.page_count + 1) if number == 0 else sorted(file.pages_behind_damage)
            for row in carve(view, _told(pages, _living(view), advance)):
                lost += not _take(row, into)
    _take_names_from_indexes(damaged, into)
    return lost


def _take_names_from_indexes(damaged: Path, into: RescuedStore) -> None:
    """An index of these small tables repeats all of their columns, on another page."""
    if not damaged.is_file():
        return
    try:
        with closing(open_for_reading(damaged, _TIMEOUT_SECONDS, is_in_use=False)) as connection:
            for table, columns in _REPEATED_BY_INDEX.items():
                for rowid, values in DamagedTable(connection, table, columns).names().items():
                    row = {"id": rowid, **dict(zip(columns, values, strict=True))}
                    with suppress(StoreDamagedError):  # not one of ours
                        verify_row(table, row)
                        into.add_missing(table, row)
    except sqlite3.Error as error:
        _LOG.info("the indexes of %s say nothing: %s", damaged, error)


def _living(view: PageView) -> Callable[[int], bool]:
    free = view.free_pages()
    return lambda page: page not in free


def _told(pages: Any, living: Callable[[int], bool], advance: Callable[[int, int], None]) -> Iterator[int]:
    for done, page in enumerate(pages):
        if done % _PAGES_PER_REPORT == 0:
            advance(done, len(pages))
        if living(page):
            yield page


def _take(carved: CarvedRow, into: RescuedStore) -> bool:
    """Whether a row was one of ours and intact, or was never one of ours."""
    tables = _tables_of(carved.serials)
    values = carved.values() if tables else None
    if values is None:
        return not tables
    for table in tables:
        row: Mapping[str, Any] | None = row_from_values(table, carved.rowid, carved.serials, values)
        if row is None:
            continue
        try:
            verify_row(table, row)
        except StoreDamagedError:
            continue
        into.add(table, row)
        return True
    return False


@lru_cache(maxsize=4096)
def _tables_of(serials: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(table for table in VERIFIED_TABLES if may_be_row_of(table, serials))
