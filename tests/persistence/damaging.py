"""Stores for the tests of damage: filled, then harmed behind SQLite's back."""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from vllm_monitor.clock import make_random
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.persistence.archive.merge import StoreMerger
from vllm_monitor.persistence.damage.page_carver import CarvedRow, carve
from vllm_monitor.persistence.damage.sqlite_pages import PageFile
from vllm_monitor.persistence.damage.stored_rows import row_from_values
from vllm_monitor.persistence.sql_store import SqlStore
from vllm_monitor.persistence.sqlite_file import open_for_reading
from vllm_monitor.records import Event, Layout, LifecycleState, Series, StateCheckpoint

PAGE_BYTES = 4096
WIDE = Layout([Series("a_total", (("n", str(number)),)) for number in range(40)])
START = 1_900_000_000
"""When everything here happens: 2030-03-17T17:46:40Z, so that no retention deletes it."""
OTHER_STORE = "0" * 31 + "1"


def checkpoint(number: int) -> StateCheckpoint:
    return StateCheckpoint(
        timestamp=START + float(number),
        state=LifecycleState.READY,
        previous_state=None,
        transition_type=None,
        arguments={"model": "m" * 200, "number": number},
        environment={},
        hardware_state={},
        checkpoint_id=f"checkpoint-{number}",
        target="t",
    )


def fill(store: PersistenceManager, *, records: int = 40, scrapes: int = 30) -> None:
    """Checkpoints, events, scrapes and single samples, all committed."""
    for number in range(records):
        store.enqueue_checkpoint(checkpoint(number))
        store.enqueue_event(
            Event(timestamp=START + float(number), event_type="x", message=f"{number}", event_id=f"e{number}")
        )
    for second in range(scrapes):
        values = array("d", [second * 7919 % 101 + column / 7 for column in range(len(WIDE))])
        store.save_scrape(WIDE, values, timestamp=START + second, target="t")
        store.save_metric("custom", "mine", second, timestamp=START + second, metadata={"n": second})
    assert store.flush_all()


def add_blocks(config: PersistenceConfig, blocks: int = 3, rows: int = 200) -> None:
    """Sealed blocks of random bits, so that each is longer than a page."""
    store = SqlStore(config.db_path, config, 0.0)
    random = np.random.default_rng(7)
    with StoreMerger(store) as merger:
        for block in range(blocks):
            sequences = np.arange(rows, dtype=np.int64) + block * rows + 1
            bits = random.random((rows, len(WIDE))).view(np.uint64)
            merger.add_scrapes(OTHER_STORE, "t", "sealed", WIDE.series, (START + sequences) * 1000, sequences, bits)
    store.close()


def rows_on_pages(path: Path, table: str) -> list[tuple[CarvedRow, dict[str, object]]]:
    """Every row of a table, with where it lies. The log must be empty."""
    found = []
    with PageFile(path) as file:
        view = next(file.views())
        for row in carve(view, range(1, view.page_count + 1)):
            values = row.values()
            if values is not None and (named := row_from_values(table, row.rowid, row.serials, values)):
                found.append((row, dict(named)))
    return found


def write_garbage(path: Path, page: int, seed: int = 1, size: int = PAGE_BYTES, at: int = 0) -> None:
    """Random bytes over a page, or a part of it."""
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE_BYTES + at)
        file.write(make_random(seed).randbytes(size))


def settle_log(path: Path) -> None:
    """Move what is in the log into the file."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def overflow_pages(path: Path, payload: bytes) -> Iterator[int]:
    """The pages that hold nothing but a part of a payload."""
    data = path.read_bytes()
    for page in range(2, len(data) // PAGE_BYTES + 1):
        content = data[(page - 1) * PAGE_BYTES : page * PAGE_BYTES]
        if content[4:200] in payload and content[0] == 0:
            yield page


def payload_of(path: Path, table: str, number: int) -> bytes:
    with closing(open_for_reading(path, 1)) as connection:
        (payload,) = connection.execute(f"SELECT payload FROM {table} WHERE id = ?", (number,)).fetchone()  # noqa: S608  # ours
        return bytes(payload)
