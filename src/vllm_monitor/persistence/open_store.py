"""Open the store of a configuration: made, migrated, or replaced after damage, as needed."""

from __future__ import annotations

import os
from pathlib import Path

from vllm_monitor.errors import StorageError, StoreDamagedError, StoreUnavailableError
from vllm_monitor.persistence.backend_detection import refuse_other_layout, settle_backend
from vllm_monitor.persistence.config import PersistenceConfig, StorageBackend
from vllm_monitor.persistence.damage.sqlite_log import log_is_damaged, log_of
from vllm_monitor.persistence.file_locks import locked
from vllm_monitor.persistence.forks.connection_gate import GATE
from vllm_monitor.persistence.forks.inherited_files import check_not_inherited
from vllm_monitor.persistence.json_backend.json_store import JsonStore
from vllm_monitor.persistence.plain_file import refuse_strange_companions
from vllm_monitor.persistence.private_folder import make_private_folder
from vllm_monitor.persistence.sql_store import SqlStore
from vllm_monitor.persistence.sqlite_file import (
    DATABASE_ERRORS,
    Fault,
    cause_of,
    fault_of,
    is_damaged,
    is_orphaned_log,
    prepare_file,
    quarantine,
)

__all__ = ["open_store"]


def open_store(config: PersistenceConfig, now: float, *, suspect: bool = False) -> SqlStore:
    """Open the store of a configuration; made, migrated, or replaced after damage, as needed.

    Args:
        config: Settings.
        now: Unix seconds.
        suspect: Damage was seen inside the file, so all of it is checked first.

    Raises:
        StoreTooNewError: When a newer version wrote it.
        StoreDamagedError: When it is damaged and could not be set aside.
        StoreUnavailableError: When it cannot be opened or written.
    """
    path = config.db_path
    try:
        make_private_folder(config.storage_dir)
        check_not_inherited(path)
        with locked(config.storage_dir / "store.lock", config.durable_timeout_seconds), GATE.entered():
            refuse_other_layout(config)
            if config.backend is StorageBackend.JSON:
                return JsonStore.in_folder(config, now)
            store = _open_locked(path, config, now, suspect=suspect)
            try:
                settle_backend(store, config)
            except BaseException:
                store.close()
                raise
            return store
    except StorageError:
        raise
    except Exception as error:
        fault = fault_of(error)
        if fault is Fault.OTHER and not isinstance(error, DATABASE_ERRORS):
            raise
        cause = str(cause_of(error))
        if fault is Fault.DAMAGED:
            raise StoreDamagedError(
                f"the store {path} is damaged: {cause}", hint="Move the file aside and start again."
            ) from error
        hint = (
            "Another process holds it; it is tried again."
            if fault is Fault.BUSY
            else "Check that storage_dir is a folder that this user may write, and that the disk is not full."
        )
        raise StoreUnavailableError(f"the store {path} cannot be opened: {cause}", hint=hint) from error


def _open_locked(path: Path, config: PersistenceConfig, now: float, *, suspect: bool) -> SqlStore:
    if os.path.lexists(path) and not path.is_file():
        raise StoreUnavailableError(
            f"{path} is no file", hint="Move what is in its place away; the store is made by itself then."
        )
    refuse_strange_companions(path)
    # A log that SQLite would cut short without a word, or forget because its file is gone.
    harmed = is_orphaned_log(path) or log_is_damaged(log_of(path))
    if not suspect and not harmed:
        try:
            prepare_file(path, config)
            return SqlStore(path, config, now)
        except Exception as error:
            if fault_of(error) is not Fault.DAMAGED:
                raise
    # Checked under the lock: another process may have replaced the file since the damage was seen.
    quarantined = quarantine(path, now) if harmed or (path.exists() and is_damaged(path)) else None
    prepare_file(path, config)
    store = SqlStore(path, config, now)
    store.quarantined = quarantined
    return store
