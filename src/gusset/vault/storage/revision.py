"""The newest migration: a vault stamped with another one is migrated, or was written by a newer gusset."""

REVISION = "0001"
