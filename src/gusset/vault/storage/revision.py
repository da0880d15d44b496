"""The newest schema revision. A vault with an older one is migrated; a newer gusset wrote a newer one."""

REVISION = "0010"

# The oldest one whose releases can work with it: that of the strictest migration.
OLDEST_COMPATIBLE = "0010"
