"""Alembic migrations, in order of their revisions.

Each names in `oldest_beside` the oldest revision whose gusset can work with the migrated database.
Without it that is the migration's own: no older manager may run then. A change that older code
cannot live with takes two releases: the first one expands (adds what the new code uses, and writes
both forms), and declares the revision before it; the next one contracts (removes what only older
code used), and declares the first one's.

Two changes are never compatible: a new column of a signed table, since older code does not know that
the row's HMAC covers it; and a new signed table, since older code finds in the audit log what was
written there, does not know the table, and reports that the rows are missing.

Older code refuses to open a database with what it takes for an intruder's: see `sqlite_objects.py` and
`postgres_objects.py`. So a compatible change only adds tables, columns of the types that there are, and
indexes of columns.
"""
