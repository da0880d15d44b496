"""Run by Alembic; the connection and its transaction come from `storage.schema.migrated`."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
