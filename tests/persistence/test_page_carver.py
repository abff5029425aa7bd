"""Rows carved out of files of SQLite, whole and damaged, against what was put in."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_monitor.clock import make_random
from vllm_monitor.persistence.damage.page_carver import carve
from vllm_monitor.persistence.damage.sqlite_log import log_of, read_log
from vllm_monitor.persistence.damage.sqlite_pages import PageFile

Row = tuple[Any, ...]
VALUES = st.one_of(
    st.none(),
    st.integers(min_value=-(1 << 63), max_value=(1 << 63) - 1),
    st.floats(allow_nan=False),
    st.text(max_size=30),
    st.binary(max_size=30),
    st.integers(min_value=0, max_value=20_000).map(
        lambda size: bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    ),
)


def make(path: Path, rows: list[Row], *, page_size: int = 4096, log: bool = False) -> None:
    """A database with one table ``t`` and, when asked, a log beside it that was never checkpointed."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size={page_size}")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        if log:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a, b, c)")
        connection.execute("CREATE INDEX ix ON t (a)")
        if not log:
            connection.execute("BEGIN")
        for row in rows:
            connection.execute("INSERT INTO t (a, b, c) VALUES (?, ?, ?)", row)
        if not log:
            connection.execute("COMMIT")
        else:  # as after a kill: closing would move the log into the file
            for source in (path, log_of(path)):
                shutil.copy(source, source.with_name(f"copy-{source.name}"))


def carved(path: Path) -> dict[int, Row]:
    """Number to values of every row of four columns."""
    found: dict[int, Row] = {}
    with PageFile(path) as file:
        for view in file.views():
            for row in carve(view, range(1, view.page_count + 1)):
                if len(row.serials) == 4 and (values := row.values()) is not None:
                    found[row.rowid] = values[1:]
    return found


def typed(rows: dict[int, Row]) -> dict[int, list[tuple[type, Any]]]:
    return {number: [(type(value), value) for value in row] for number, row in rows.items()}


@settings(max_examples=40)
@given(st.lists(st.tuples(VALUES, VALUES, VALUES), max_size=40), st.sampled_from([512, 4096, 65536]), st.booleans())
def test_every_row_of_a_whole_file_is_found(rows: list[Row], page_size: int, log: bool) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.db"
        make(path, rows, page_size=page_size, log=log)
        if log:
            path = path.with_name("copy-x.db")
        assert typed(carved(path)) == typed(dict(enumerate(rows, 1)))


def numbered(count: int, size: int = 50) -> list[Row]:
    return [(number, f"text {number}", bytes([number % 256]) * size) for number in range(count)]


def test_neither_header_nor_schema_nor_trees_are_needed(tmp_path: Path) -> None:
    rows = numbered(2000)
    make(tmp_path / "x.db", rows)
    data = bytearray((tmp_path / "x.db").read_bytes())
    for start in range(0, len(data), 4096):
        if data[start] in (2, 5, 10) or start == 0:
            data[start : start + 4096] = b"\xa5" * 4096
    (tmp_path / "x.db").write_bytes(data)
    assert carved(tmp_path / "x.db") == dict(enumerate(rows, 1))


@settings(max_examples=30)
@given(st.data())
def test_damage_costs_only_the_rows_that_it_touches(data: st.DataObject) -> None:
    rows = numbered(60, size=900)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.db"
        make(path, rows)
        content = bytearray(path.read_bytes())
        pages = len(content) // 4096
        harmed = data.draw(st.lists(st.integers(0, pages - 1), max_size=4, unique=True))
        random = make_random(data.draw(st.integers(0, 1 << 30)))
        intact = carved(path)
        owners = {row.rowid: row.page - 1 for row in leaves(path)}
        for page in harmed:
            content[page * 4096 : (page + 1) * 4096] = random.randbytes(4096)
        path.write_bytes(content)
        found = carved(path)
        for number, row in intact.items():
            if owners[number] not in harmed:
                assert found[number] == row


def leaves(path: Path) -> list[Any]:
    with PageFile(path) as file:
        (view,) = file.views()
        return [row for row in carve(view, range(1, view.page_count + 1)) if len(row.serials) == 4]


def test_a_cut_file_gives_what_is_left(tmp_path: Path) -> None:
    rows = numbered(2000)
    make(tmp_path / "x.db", rows)
    data = (tmp_path / "x.db").read_bytes()
    (tmp_path / "x.db").write_bytes(data[: len(data) // 2 + 100])
    found = carved(tmp_path / "x.db")
    assert 500 < len(found) < 2000
    assert all(rows[number - 1] == row for number, row in found.items())


def test_freed_pages_are_known(tmp_path: Path) -> None:
    make(tmp_path / "x.db", numbered(500))
    with closing(sqlite3.connect(tmp_path / "x.db")) as connection:
        connection.execute("DELETE FROM t")
        connection.commit()
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    with PageFile(tmp_path / "x.db") as file:
        (view,) = file.views()
        assert len(view.free_pages()) == free > 5
        living = set(range(1, view.page_count + 1)) - view.free_pages()
        assert [row for row in carve(view, living) if len(row.serials) == 4] == []
    data = bytearray((tmp_path / "x.db").read_bytes())
    data[36:40] = b"\0\0\0\1"  # a count that does not match: the list is not believed
    (tmp_path / "x.db").write_bytes(data)
    with PageFile(tmp_path / "x.db") as file:
        assert next(file.views()).free_pages() == frozenset()


# --- the log -------------------------------------------------------------------------------------------


def logged(folder: Path, rows: list[Row]) -> Path:
    make(folder / "x.db", rows, log=True)
    return folder / "copy-x.db"


def frame_at(number: int) -> slice:
    return slice(32 + number * 4120, 32 + (number + 1) * 4120)


def test_an_uncommitted_end_of_the_log_is_left_out(tmp_path: Path) -> None:
    path = logged(tmp_path, numbered(300))
    log = log_of(path).read_bytes()
    whole = read_log(log_of(path))
    assert not whole.is_damaged
    log_of(path).write_bytes(log[: len(log) - 4120 - 17])
    cut = read_log(log_of(path))
    assert not cut.is_damaged
    assert len(carved(path)) == 299


def test_what_lies_behind_damage_in_the_log_is_found(tmp_path: Path) -> None:
    rows = numbered(300)
    path = logged(tmp_path, rows)
    log = bytearray(log_of(path).read_bytes())
    frames = (len(log) - 32) // 4120
    log[frame_at(frames // 2)] = b"\xa5" * 4120
    log_of(path).write_bytes(log)
    image = read_log(log_of(path))
    assert image.is_damaged
    assert carved(path) == dict(enumerate(rows, 1))
    shutil.copy(path, tmp_path / "again.db")  # what SQLite itself makes of it
    shutil.copy(log_of(path), log_of(tmp_path / "again.db"))
    with closing(sqlite3.connect(tmp_path / "again.db")) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone()[0] < 300


def test_a_log_without_its_header_is_read(tmp_path: Path) -> None:
    rows = numbered(300)
    path = logged(tmp_path, rows)
    log_of(path).write_bytes(b"\xa5" * 32 + log_of(path).read_bytes()[32:])
    assert read_log(log_of(path)).is_damaged
    assert carved(path) == dict(enumerate(rows, 1))


def test_a_log_without_its_file_is_read(tmp_path: Path) -> None:
    rows = numbered(300)
    path = logged(tmp_path, rows)
    path.unlink()
    assert carved(path) == dict(enumerate(rows, 1))


def test_frames_of_a_transaction_that_was_rolled_back_are_no_damage(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as connection:
        # Neither an index nor a map of pages: what spills twice carries no checksum until the commit.
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a, b, c)")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA cache_size=5")  # so that pages spill into the log before the commit
        connection.execute("INSERT INTO t (a, b, c) VALUES (1, 2, 3)")
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO t (a, b, c) VALUES (?, ?, ?)", numbered(3000))
        connection.execute("ROLLBACK")
        spilled = log_of(tmp_path / "x.db").stat().st_size
        connection.execute("INSERT INTO t (a, b, c) VALUES (4, 5, 6)")
        assert log_of(tmp_path / "x.db").stat().st_size == spilled > 50_000
        assert not read_log(log_of(tmp_path / "x.db")).is_damaged
        assert carved(tmp_path / "x.db") == {1: (1, 2, 3), 2: (4, 5, 6)}


@pytest.mark.parametrize("content", [b"", b"\0", b"SQLite format 3\0", b"\xa5" * 5000])
def test_what_is_no_database_holds_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.db").write_bytes(content)
    log_of(tmp_path / "x.db").write_bytes(content)
    assert carved(tmp_path / "x.db") == {}


def test_a_chain_of_pages_that_never_ends_is_left(tmp_path: Path) -> None:
    make(tmp_path / "x.db", [(1, 2, b"x" * 20_000)])
    data = bytearray((tmp_path / "x.db").read_bytes())
    for start in range(4096, len(data), 4096):
        if data[start : start + 1] == b"\0" and data[start + 4 : start + 8] == b"xxxx":
            data[start : start + 4] = (1 << 31).to_bytes(4, "big")
    (tmp_path / "x.db").write_bytes(data)
    assert carved(tmp_path / "x.db") == {}
