"""Run by Alembic; the connection and its transaction come from `storage.database.migrate`."""

from alembic import context

from gusset.vault.storage.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
