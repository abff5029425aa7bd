"""Saving learned models and loading them."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from vllm_monitor.errors import RecordNotFoundError, StoreDamagedError, StoreUnavailableError
from vllm_monitor.persistence.codecs.arguments import checked_mapping, checked_text, checked_version, stored_text
from vllm_monitor.persistence.codecs.columns import unpack_text
from vllm_monitor.persistence.codecs.text_column import from_text_column, to_text_column
from vllm_monitor.persistence.codecs.value_codec import decode_value, encode_value
from vllm_monitor.persistence.documents.own_item_access import OwnItemAccess
from vllm_monitor.persistence.models.model_codec import decode_model, encode_model
from vllm_monitor.persistence.models.model_items import MODEL_ROWS, ModelDeletion, ModelItem, with_pending
from vllm_monitor.persistence.models.model_store import ModelStore, verify_arrays, verify_row
from vllm_monitor.persistence.pending import Batch
from vllm_monitor.persistence.records.rare_rows import Row
from vllm_monitor.persistence.samples.sample_rows import SeriesCatalogue

__all__ = ["ModelInfo", "ModelVerbs"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One stored version of a model.

    Args:
        model_name: Its name.
        version: Counts up from 1 for each name.
        model_id: Unique across stores.
        timestamp: Unix seconds at which it was saved.
        size_bytes: Bytes of its arrays as stored.
        metadata: As saved.
    """

    model_name: str
    version: int
    model_id: str
    timestamp: float
    size_bytes: int
    metadata: dict[str, Any]


class ModelVerbs(OwnItemAccess):
    """Learned models; part of ``PersistenceManager``."""

    def _begin(self) -> None:
        super()._begin()
        self._models = ModelStore(self.config)

    def save_model(self, model_name: str, model_data: Any, metadata: Mapping[str, Any] | None = None) -> str:
        """Save a new version of a model; durable when the call returns, and its id is returned.

        What is saved is what loads, by type and bits: numpy arrays of any shape and of any type without Python
        objects, dicts with any keys, lists, tuples, sets, numbers, texts, bytes, paths, dates, enums, nested at
        will. Three things are not kept: a single numpy number (``np.float64(1)``) comes back as the equal Python
        number, an array in Fortran order as an equal one in C order, and what inherits from one of these types as
        that type (an ``OrderedDict`` as a dict).

        The newest ``config.model_versions_kept`` versions of a name stay. The call waits as :meth:`save_checkpoint`
        does; a model that is not durable yet is held in memory and can be loaded.

        Args:
            model_name: Any text; it is no path.
            model_data: The model.
            metadata: Anything to keep with it.

        Raises:
            ValueNotStorableError: When something in it could not be given back unchanged; the hint says what to
                store instead.
            StoreUnavailableError: When it is not durable and ``config.required`` is set.
        """
        model_name = stored_text(model_name, "model_name")
        kept = checked_mapping(metadata, "metadata")
        encoded = encode_model(model_data, compress=self.config.compression_enabled)
        model_id = uuid.uuid4().hex
        metadata_text = encode_value(kept)
        row = self._models.row_of(model_id, model_name, self._now(), encoded, metadata_text)
        item = ModelItem(MODEL_ROWS, model_id, row, models=self._models, arrays=encoded.arrays)
        if not self._closed:
            try:
                self._models.put_file(row, encoded.arrays)  # here, so that the writer need not wait for it
            except OSError as error:
                _LOG.info("the file of a model will be written later: %s", error)
        if self._wait_for(item):
            self._models.remove_files(item.obsolete)
        return model_id

    def load_model(self, model_name: str, version: int | None = None) -> tuple[Any, dict[str, Any]]:
        """A model and its metadata. Nothing of what is stored is ever executed.

        Args:
            model_name: Its name.
            version: The version, see :meth:`list_models`; ``None`` is the newest.

        Raises:
            RecordNotFoundError: When there is none of that name, or not this version.
            StoreDamagedError: When it is not what was stored; other versions may be.
            StoreUnavailableError: When it cannot be read now.
        """
        model_name, version = checked_text(model_name, "model_name"), checked_version(version)
        row, arrays = self._find_model(model_name, version)
        if arrays is None:
            try:
                arrays = self._models.file_arrays(row)
            except FileNotFoundError:
                # Removed by another process since the row was read (then there is a newer one), or lost.
                newer, arrays = self._find_model(model_name, version)
                if newer["model_id"] == row["model_id"]:
                    raise StoreDamagedError(
                        f"the file {row['file_name']} of a model is gone", hint="Load another version of it."
                    ) from None
                row = newer
                arrays = self._read_file(row) if arrays is None else arrays
            except OSError as error:
                raise _unreadable(row, error) from error
        verify_row(row)
        verify_arrays(row, arrays)
        data = decode_model(unpack_text(row["structure"]), arrays)
        return data, decode_value(unpack_text(row["metadata"]))

    def list_models(self) -> list[ModelInfo]:
        """All versions of all models, oldest first; rows that are damaged are skipped, logged and counted."""
        found: list[ModelInfo] = []
        damaged = 0
        for row, _ in self._model_rows(None):
            try:
                verify_row(row)
                found.append(
                    ModelInfo(
                        model_name=from_text_column(row["model_name"]),
                        version=row["version"],
                        model_id=row["model_id"],
                        timestamp=row["timestamp"],
                        size_bytes=row["size_bytes"],
                        metadata=decode_value(unpack_text(row["metadata"])),
                    )
                )
            except StoreDamagedError as error:
                damaged += 1
                _LOG.warning("a model was skipped: %s", error)
        self._count_damage(damaged)
        return found

    def delete_model(self, model_name: str, version: int | None = None) -> None:
        """Delete a version of a model, or all of them; durable when the call returns.

        Raises:
            RecordNotFoundError: When there is none.
            StoreUnavailableError: When it is not durable and ``config.required`` is set.
        """
        model_name, version = checked_text(model_name, "model_name"), checked_version(version)
        self._find_row(model_name, version)
        item = ModelDeletion(MODEL_ROWS, uuid.uuid4().hex, {}, models=self._models, name=model_name, version=version)
        if self._wait_for(item):
            self._models.remove_files(item.obsolete)

    async def save_model_async(
        self, model_name: str, model_data: Any, metadata: Mapping[str, Any] | None = None
    ) -> str:
        """As :meth:`save_model`, without blocking the loop; do not change the model until it returns."""
        return await asyncio.to_thread(self.save_model, model_name, model_data, metadata)

    async def load_model_async(self, model_name: str, version: int | None = None) -> tuple[Any, dict[str, Any]]:
        """As :meth:`load_model`, without blocking the loop."""
        return await asyncio.to_thread(self.load_model, model_name, version)

    async def list_models_async(self) -> list[ModelInfo]:
        """As :meth:`list_models`, without blocking the loop."""
        return await asyncio.to_thread(self.list_models)

    async def delete_model_async(self, model_name: str, version: int | None = None) -> None:
        """As :meth:`delete_model`, without blocking the loop."""
        await asyncio.to_thread(self.delete_model, model_name, version)

    def _model_rows(self, name: str | None) -> list[tuple[Row, ModelItem | None]]:
        def ask(memory: Batch, connection: Connection | None, _: SeriesCatalogue) -> list[tuple[Row, ModelItem | None]]:
            stored = [] if connection is None else self._models.rows(connection, name)
            return with_pending(stored, memory.rare)

        return self._look(ask)

    def _find_row(self, name: str, version: int | None) -> None:
        _picked(self._model_rows(name), name, version)

    def _find_model(self, name: str, version: int | None) -> tuple[Row, bytes | None]:
        """Its row, and its arrays unless they are in a file."""

        def ask(memory: Batch, connection: Connection | None, _: SeriesCatalogue) -> tuple[Row, bytes | None]:
            stored = [] if connection is None else self._models.rows(connection, name)
            row, item = _picked(with_pending(stored, memory.rare), name, version)
            if item is not None:
                return row, item.arrays
            if row["file_name"] is None and connection is not None:
                return row, self._models.column_arrays(connection, row)
            return row, None

        return self._look(ask)

    def _read_file(self, row: Row) -> bytes:
        try:
            return self._models.file_arrays(row)
        except OSError as error:
            raise _unreadable(row, error) from error


def _picked(rows: list[tuple[Row, ModelItem | None]], name: str, version: int | None) -> tuple[Row, ModelItem | None]:
    wanted = [
        found
        for found in rows
        if found[0]["model_name"] == to_text_column(name) and version in (None, found[0]["version"])
    ]
    if not wanted:
        what = f"model {name!r}" if version is None else f"version {version} of the model {name!r}"
        raise RecordNotFoundError(f"there is no {what}", hint="list_models() says which there are.")
    return max(wanted, key=lambda found: found[0]["version"])


def _unreadable(row: Row, error: OSError) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"the file {row['file_name']} of a model cannot be read: {error}",
        hint="Check the permissions of the models' folder.",
    )
