"""Run by Alembic; the connection, with its transaction, comes from `gusset.vault.database.migrate`."""

from alembic import context

from gusset.vault.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
