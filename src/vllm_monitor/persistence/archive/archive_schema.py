"""Which tables and indexes the database of an archive may have: those that our migrations make, and nothing else.

A trigger, a view, a virtual table, a generated column or a check could make SQLite do what its author wants; none of
them can be in a database whose every object is word for word one of ours.
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
from contextlib import closing
from functools import lru_cache
from pathlib import Path

from sqlalchemy import create_engine

from vllm_monitor.errors import ArchiveError
from vllm_monitor.persistence.migrate import upgrade

__all__ = ["SchemaObject", "objects_of", "refuse_other_objects"]

SchemaObject = tuple[str, str, str, str]
"""Type, name, table and statement of an object."""

_SPACE = re.compile(r"\s+")
_HINT = "Nothing was imported. Make the archive again with vllm-monitor export, or fetch another copy of it."


def objects_of(connection: sqlite3.Connection) -> frozenset[SchemaObject]:
    """What is in a database; statements without the differences in white space that make none."""
    rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
    return frozenset((str(kind), str(name), str(table), _plain(sql)) for kind, name, table, sql in rows)


def refuse_other_objects(found: frozenset[SchemaObject], revision: str) -> None:
    """Compare what a database has with what a revision has.

    Raises:
        ArchiveError: When there is more, less, or something else.
    """
    expected = _objects_of_revision(revision)
    for kind, name, _, _ in sorted(found - expected):
        raise ArchiveError(f"the database has a {kind} {name[:100]!r} that no archive has", hint=_HINT)
    for kind, name, _, _ in sorted(expected - found):
        raise ArchiveError(f"the database lacks the {kind} {name!r}", hint=_HINT)


@lru_cache(maxsize=8)
def _objects_of_revision(revision: str) -> frozenset[SchemaObject]:
    with tempfile.TemporaryDirectory(prefix="vllm-monitor-") as folder:
        path = Path(folder) / "reference.db"
        engine = create_engine(f"sqlite+pysqlite:///{path}")
        with engine.begin() as connection:
            upgrade(connection, revision)
        engine.dispose()
        with closing(sqlite3.connect(path)) as raw:
            return objects_of(raw)


def _plain(sql: str | None) -> str:
    return _SPACE.sub(" ", sql or "").strip()
