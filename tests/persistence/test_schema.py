from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

import vllm_monitor.persistence
from vllm_monitor.errors import StoreTooNewError, StoreUnavailableError
from vllm_monitor.persistence import PersistenceManager, schema
from vllm_monitor.persistence.migrate import create, upgrade

OpenStore = Callable[..., PersistenceManager]
MIGRATIONS = Path(vllm_monitor.persistence.__file__).parent / "migrations"


def test_migrations_make_what_the_schema_says() -> None:
    migrated, created = create_engine("sqlite://"), create_engine("sqlite://")
    with migrated.begin() as one, created.begin() as other:
        upgrade(one)
        create(other)
        assert compare_metadata(MigrationContext.configure(one), schema.metadata) == []
        for query in ("SELECT name, sql FROM sqlite_master ORDER BY name", "SELECT * FROM alembic_version"):
            assert one.exec_driver_sql(query).all() == other.exec_driver_sql(query).all()
    migrated.dispose()
    created.dispose()


def test_the_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == schema.HEAD_REVISION


def test_every_table_can_be_made_in_postgresql() -> None:
    for table in schema.metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]  # SQLAlchemy leaves its dialects untyped


def snapshot_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "store.lock"}


def test_a_newer_store_is_refused_untouched(open_store: OpenStore, tmp_path: Path) -> None:
    open_store().close()
    file = tmp_path / "store" / "monitor.db"
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = snapshot_of(file.parent)
    with pytest.raises(StoreTooNewError, match="9999") as caught:
        open_store(required=True)
    assert "Upgrade" in caught.value.hint
    store = open_store()
    store.save_metric("custom", "x", 1)
    assert store.health().degraded
    assert "9999" in store.health().message
    assert len(store.get_metrics()) == 1
    store.close()
    assert snapshot_of(file.parent) == before


def test_a_database_of_something_else_is_refused_untouched(open_store: OpenStore, tmp_path: Path) -> None:
    file = tmp_path / "store" / "monitor.db"
    file.parent.mkdir()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE recipes (name)")
    connection.close()
    before = snapshot_of(file.parent)
    with pytest.raises(StoreUnavailableError, match="not a store"):
        open_store(required=True)
    assert open_store().health().degraded
    assert snapshot_of(file.parent) == before
