"""Bring a database to the schema of this version."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from sqlalchemy import (
    URL,
    Column,
    Connection,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    insert,
    inspect,
    text,
)
from sqlalchemy.schema import CreateIndex, CreateTable

from vllm_monitor.errors import StoreTooNewError, StoreUnavailableError
from vllm_monitor.persistence.schema import HEAD_REVISION, metadata

__all__ = ["check_revision", "create", "revision_of", "upgrade"]

_SCRIPTS = Path(__file__).parent / "migrations"


def check_revision(revision: str | None, has_tables: bool, name: str) -> bool:
    """Whether a database must be upgraded.

    Args:
        revision: What its ``alembic_version`` table says; ``None`` when it has none.
        has_tables: Whether it has any table.
        name: The database, for messages.

    Raises:
        StoreTooNewError: When a newer version of this package wrote it.
        StoreUnavailableError: When it is a database of something else.
    """
    if revision == HEAD_REVISION:
        return False
    if revision is None:
        if has_tables:
            raise StoreUnavailableError(
                f"{name} is a database, but not a store of vllm-monitor",
                hint="Choose another storage_dir or db_file; this file was not touched.",
            )
        return True
    if not any(path.name.startswith(f"{revision}_") for path in (_SCRIPTS / "versions").glob("*.py")):
        raise StoreTooNewError(
            f"{name} has schema {revision}, this version of vllm-monitor knows up to {HEAD_REVISION}",
            hint="Upgrade vllm-monitor, or choose another storage_dir; this file was not touched.",
        )
    return True


def revision_of(connection: Connection) -> tuple[str | None, bool]:
    """The revision of a database, and whether it has any table."""
    names = inspect(connection).get_table_names()
    if "alembic_version" not in names:
        return None, bool(names)
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar(), True


def create(connection: Connection) -> None:
    """Make all tables at once in an empty database, inside the caller's transaction.

    The same as all migrations one after the other (a test compares them), without loading Alembic.
    """
    for statement in _statements(connection.dialect.name):
        connection.exec_driver_sql(statement)
    number = Column("version_num", String(32), nullable=False)
    version = Table("alembic_version", MetaData(), number, PrimaryKeyConstraint(number, name="alembic_version_pkc"))
    version.create(connection)
    connection.execute(insert(version), {"version_num": HEAD_REVISION})


@cache
def _statements(dialect_name: str) -> tuple[str, ...]:
    """The tables and indexes as statements, compiled once: a process may make many stores (archives, salvage)."""
    dialect = URL.create(dialect_name).get_dialect()()
    statements: list[str] = []
    for table in metadata.sorted_tables:
        statements.append(str(CreateTable(table).compile(dialect=dialect)))
        statements.extend(str(CreateIndex(index).compile(dialect=dialect)) for index in _in_order(table))
    return tuple(statements)


def _in_order(table: Table) -> list[Index]:
    return sorted(table.indexes, key=lambda index: str(index.name))


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run every migration up to a revision that the database has not seen, inside the caller's transaction."""
    # Imported here: a store that is up to date opens without Alembic.
    from alembic import command  # noqa: PLC0415  # see above
    from alembic.config import Config  # noqa: PLC0415  # see above

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
