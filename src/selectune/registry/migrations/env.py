"""Alembic's own entry: it gets a connection with a transaction from `schema.upgrade`, and leaves the end of it to the caller."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
