"""What Alembic runs to migrate: on the connection, and in the transaction, that `run.py` hands over."""

from __future__ import annotations

from alembic import context

from platform_server.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite changes a table by making it anew, and its DDL is transactional while nothing commits.
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
