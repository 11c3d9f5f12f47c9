"""Names and subjects are found by an index; the view of names takes one look at each move."""

from __future__ import annotations

from alembic import op

from selectune.registry.schema import REVISIONS

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Makes the view anew, and the indexes."""
    connection = op.get_bind()
    for statement in REVISIONS[revision][connection.dialect.name]:
        connection.exec_driver_sql(statement)
