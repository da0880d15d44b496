"""The newest schema revision. A vault with an older one is migrated; a newer gusset wrote a newer one."""

REVISION = "0010"
