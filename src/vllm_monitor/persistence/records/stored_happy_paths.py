"""The happy paths of a store, read without changing it: nothing is migrated, set aside or made."""

from __future__ import annotations

import logging

from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from vllm_monitor.errors import StorageError, StoreDamagedError, StoreUnavailableError
from vllm_monitor.persistence.backend_detection import database_path
from vllm_monitor.persistence.config import PersistenceConfig
from vllm_monitor.persistence.damage.sqlite_log import log_is_damaged, log_of
from vllm_monitor.persistence.migrate import check_revision, revision_of
from vllm_monitor.persistence.pending import Batch
from vllm_monitor.persistence.records.rare_kinds import HAPPY_PATHS, StoredHappyPath
from vllm_monitor.persistence.records.record_reader import read_records
from vllm_monitor.persistence.sqlite_file import DATABASE_ERRORS, Fault, cause_of, fault_of, open_for_reading
from vllm_monitor.records import HappyPath

__all__ = ["read_happy_paths"]

_LOG = logging.getLogger(__name__)


def read_happy_paths(config: PersistenceConfig) -> list[HappyPath]:
    """The happy paths of a store that is there, those first saved last in front; damaged ones are left out.

    Args:
        config: Says where the store is.

    Raises:
        StoreDamagedError: When it is damaged.
        StoreUnavailableError: When it cannot be read, is of something else, or has the schema of an earlier version.
        StoreTooNewError: When a newer version wrote it.
    """
    path = database_path(config)
    if not path.is_file():
        raise StoreUnavailableError(f"{path} is no file", hint="Name the folder of the store with --storage-dir.")
    log = log_of(path)
    # Who has the store open has its log too; where nobody has, nothing is made beside it.
    engine = create_engine(
        "sqlite+pysqlite://",
        creator=lambda: open_for_reading(path, config.durable_timeout_seconds, is_in_use=log.exists()),
        poolclass=NullPool,
    )
    damaged = StoreDamagedError(f"the store {path} is damaged", hint="Look with vllm-monitor check.")
    try:
        if log.exists() and (log_is_damaged(log) or (log.stat().st_size and not path.stat().st_size)):
            raise damaged
        with engine.connect() as connection:
            revision, has_tables = revision_of(connection)
            if check_revision(revision, has_tables, str(path)):
                if not has_tables:
                    return []
                raise StoreUnavailableError(
                    f"{path} has the schema of an earlier version, and looking does not migrate it",
                    hint="Start the monitor, which migrates it: vllm-monitor watch.",
                )
            rows, _ = read_records(
                HAPPY_PATHS, Batch(), connection, wanted={}, start=None, end=None, target=None, limit=None
            )
    except (*DATABASE_ERRORS, OSError) as error:
        if fault_of(error) in {Fault.DAMAGED, Fault.OTHER}:
            raise damaged from error
        message = f"the store {path} cannot be read: {cause_of(error)}"
        raise StoreUnavailableError(message, hint="Check that this user may read it, and try again.") from error
    finally:
        engine.dispose()
    return [one for row in rows if (one := _restored(row)) is not None]


def _restored(row: StoredHappyPath) -> HappyPath | None:
    try:
        return row.restored()
    except (StorageError, TypeError, ValueError, LookupError) as error:
        _LOG.warning("a happy path was skipped: %s", error)
        return None
