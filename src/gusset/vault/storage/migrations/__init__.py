"""Alembic migrations, in order of their revisions."""
