"""What Alembic runs around the migrations: they use the connection, and the transaction, of the caller."""

from __future__ import annotations

from alembic import context

from vllm_monitor.persistence.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=False)
context.run_migrations()
