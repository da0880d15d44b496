"""The table `meta`: single values that are not signed."""

from __future__ import annotations

from gusset.vault.storage.sql import Statement

# A random text that every change of a key, a person, a team or a deployment replaces:
# caches of what a caller may do compare it.
ACCESS_GENERATION = "access"

# Two revisions: the schema's, and the oldest one whose gusset can use the database.
SCHEMA = "schema"

READ_META = Statement("SELECT value FROM meta WHERE key = :key")
INSERT_META = Statement("INSERT INTO meta (key, value) VALUES (:key, :value)")
WRITE_META = Statement("UPDATE meta SET value = :value WHERE key = :key")
DELETE_META = Statement("DELETE FROM meta WHERE key = :key")
