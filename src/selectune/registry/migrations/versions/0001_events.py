"""The events, append-only and chained, with the views of names and updates."""

from __future__ import annotations

from alembic import op

from selectune.registry.schema import REVISIONS

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes them."""
    connection = op.get_bind()
    for statement in REVISIONS[revision][connection.dialect.name]:
        connection.exec_driver_sql(statement)
