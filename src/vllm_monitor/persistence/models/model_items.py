"""Models on their way to the store, and what a reader sees of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from vllm_monitor.persistence.codecs.text_column import to_text_column
from vllm_monitor.persistence.documents.own_items import OwnItem
from vllm_monitor.persistence.models.model_store import ModelStore, model_checksum
from vllm_monitor.persistence.pending import RareItem
from vllm_monitor.persistence.records.rare_rows import RareKind, Row

__all__ = ["MODEL_ROWS", "ModelDeletion", "ModelItem", "with_pending"]

MODEL_ROWS: RareKind[Any] = RareKind(table="models", record_type=dict, id_field="model_id", forms={})
"""Stands for models where the kind of a rare record is asked for; their rows are made by ``model_store``."""
_BYTES_PER_ITEM = 1_500


@dataclass(slots=True, eq=False, kw_only=True)
class ModelItem(OwnItem):
    """A new version.

    Args:
        models: Where it goes.
        arrays: The bytes of its arrays; they stay in memory until they are known to be durable.
        obsolete: Files that are not needed once it is durable.
    """

    models: ModelStore
    arrays: bytes
    obsolete: list[str] = field(default_factory=list)

    def size_bytes(self) -> int:
        """Roughly the memory that it takes."""
        return _BYTES_PER_ITEM + len(self.arrays) + len(self.row["structure"]) + len(self.row["metadata"])

    def write(self, connection: Connection) -> None:
        """Write file and row."""
        self.row = {**self.row, "version": 0}  # another attempt may find other versions there
        self.obsolete = self.models.write(connection, self.row, self.arrays)


@dataclass(slots=True, eq=False, kw_only=True)
class ModelDeletion(OwnItem):
    """That a version, or a model with all its versions, is removed."""

    models: ModelStore
    name: str
    version: int | None
    obsolete: list[str] = field(default_factory=list)

    def size_bytes(self) -> int:
        """Roughly the memory that it takes."""
        return _BYTES_PER_ITEM

    def write(self, connection: Connection) -> None:
        """Remove the rows."""
        self.obsolete = self.models.delete(connection, self.name, self.version)


def with_pending(stored: Iterable[Row], waiting: Iterable[RareItem]) -> list[tuple[Row, ModelItem | None]]:
    """Stored rows, and as if they were stored those that wait, each with the item that holds its arrays."""
    found: dict[tuple[str, int], tuple[Row, ModelItem | None]] = {}
    for row in stored:
        found[row["model_name"], row["version"]] = (row, None)
    for item in waiting:
        if isinstance(item, ModelItem):
            name = item.row["model_name"]
            version = max((number for other, number in found if other == name), default=0) + 1
            row = {**item.row, "version": version}
            row["checksum"] = model_checksum(row)
            found[name, version] = (row, item)
        elif isinstance(item, ModelDeletion):
            name = to_text_column(item.name)
            for key in [key for key in found if key[0] == name and item.version in (None, key[1])]:
                del found[key]
    return list(found.values())
