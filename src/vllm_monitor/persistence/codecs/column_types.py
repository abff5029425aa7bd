"""SQLite lets any value stand in any column; this says which may stand in a column of ours."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy import Float, Integer, LargeBinary, Text

from vllm_monitor.persistence import schema

__all__ = ["wrong_column"]

_NOTHING = type(None)


def wrong_column(table: str, row: Mapping[str, Any]) -> str | None:
    """The first column of a row whose value is of a type that it never has; ``None`` when there is none.

    Args:
        table: Its name.
        row: Columns as SQLite gives them; such as the table does not have are not looked at.
    """
    kinds = _kinds_of(table)
    for name, value in row.items():
        if type(value) not in kinds.get(name, (type(value),)):
            return name
    return None


@lru_cache(maxsize=64)
def _kinds_of(table: str) -> dict[str, tuple[type, ...]]:
    return {
        column.name: (*_kinds(column.type), *((_NOTHING,) if column.nullable else ()))
        for column in schema.metadata.tables[table].columns
    }


def _kinds(kind: Any) -> tuple[type, ...]:
    if isinstance(kind, Text):
        return (str,)
    if isinstance(kind, LargeBinary):
        return (bytes,)
    if isinstance(kind, Float):
        return (float, int)  # SQLite stores whole real numbers as whole numbers
    if isinstance(kind, Integer):
        return (int,)
    raise TypeError(f"no column of ours is {kind!r}")
