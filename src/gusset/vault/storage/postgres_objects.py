"""What in a schema of PostgreSQL is not gusset's, and could change what gusset reads or writes."""

from __future__ import annotations

from functools import cache

from gusset.vault.storage.prepared_schema import table_names

# Object numbers from here on are those of what was made after the server was installed.
_FIRST_NUMBER = 16_384

# bool, bytea, name, int8, int2, int4, text, varchar: what gusset reads. Others compare by their own rules.
_TYPES = "16, 17, 19, 20, 21, 23, 25, 1043"

# In `known` are gusset's own tables, also if somebody has made them part of an extension; `ours` also has
# those of others, but for those of extensions. A function in `runs` is not in C, so anybody can make one.
_QUERY = """
WITH here AS (SELECT oid FROM pg_namespace WHERE nspname = current_schema()),
names AS (SELECT unnest('{{{names}}}'::text[]) AS name),
ours AS (
  SELECT c.* FROM pg_class c JOIN here ON here.oid = c.relnamespace
  WHERE c.relname::text IN (SELECT name FROM names) OR NOT EXISTS (
    SELECT 1 FROM pg_depend d
    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')),
known AS (SELECT * FROM ours WHERE relname::text IN (SELECT name FROM names)),
runs AS (
  SELECT p.* FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang WHERE l.lanname NOT IN ('c', 'internal'))
SELECT 'trigger ' || t.tgname FROM pg_trigger t JOIN ours ON ours.oid = t.tgrelid WHERE NOT t.tgisinternal
UNION SELECT 'rule ' || r.rulename FROM pg_rewrite r JOIN ours ON ours.oid = r.ev_class
  WHERE r.rulename <> '_RETURN'
UNION SELECT 'view ' || relname FROM ours WHERE relkind IN ('v', 'm', 'f')
UNION SELECT 'row security of ' || relname FROM ours WHERE relrowsecurity
UNION SELECT 'check ' || k.conname FROM pg_constraint k JOIN ours ON ours.oid = k.conrelid
  WHERE k.contype = 'c'
UNION SELECT 'exclusion ' || k.conname FROM pg_constraint k JOIN known ON known.oid = k.conrelid
  WHERE k.contype = 'x'
UNION SELECT 'child table ' || c.relname FROM pg_inherits i JOIN ours ON ours.oid = i.inhparent
  JOIN pg_class c ON c.oid = i.inhrelid WHERE ours.relkind <> 'i'
UNION SELECT 'parent table of ' || known.relname FROM pg_inherits i JOIN known ON known.oid = i.inhrelid
UNION SELECT 'partitions of ' || relname FROM known WHERE relkind = 'p'
UNION SELECT 'type of ' || known.relname || '.' || a.attname FROM pg_attribute a
  JOIN known ON known.oid = a.attrelid
  WHERE known.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
  AND (a.atttypid NOT IN ({types}) OR a.attcollation >= {first} OR a.attgenerated <> '')
UNION SELECT 'default of ' || known.relname || '.' || a.attname FROM pg_attrdef d
  JOIN known ON known.oid = d.adrelid
  JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
  WHERE a.attgenerated = '' AND pg_get_expr(d.adbin, d.adrelid) !~
    '^(''[^'']*''|NULL|-?[0-9]+|true|false)(::(bigint|integer|text|character varying|boolean|bytea))?$'
UNION SELECT 'index ' || c.relname FROM pg_index i JOIN known ON known.oid = i.indrelid
  JOIN pg_class c ON c.oid = i.indexrelid
  WHERE i.indexprs IS NOT NULL OR pg_get_expr(i.indpred, i.indrelid) !~ '^[(][a-z_]+ IS (NOT )?NULL[)]$'
  OR EXISTS (SELECT 1 FROM unnest(i.indclass::oid[] || i.indcollation::oid[]) u WHERE u >= {first})
UNION SELECT 'function ' || p.proname FROM runs p JOIN here ON here.oid = p.pronamespace
  WHERE EXISTS (
    SELECT 1 FROM pg_proc b WHERE b.proname = p.proname AND b.pronamespace = 'pg_catalog'::regnamespace)
  AND NOT EXISTS (
    SELECT 1 FROM pg_proc b WHERE b.proname = p.proname AND b.pronamespace = 'pg_catalog'::regnamespace
    AND b.proargtypes = p.proargtypes)
  AND {first} > ALL (p.proargtypes::oid[])
UNION SELECT 'operator ' || o.oprname FROM pg_operator o JOIN here ON here.oid = o.oprnamespace
  JOIN runs p ON p.oid = o.oprcode WHERE o.oprleft < {first} AND o.oprright < {first}
  AND EXISTS (
    SELECT 1 FROM pg_operator b WHERE b.oprname = o.oprname AND b.oprnamespace = 'pg_catalog'::regnamespace)
UNION SELECT 'event trigger ' || e.evtname FROM pg_event_trigger e WHERE e.evtenabled <> 'D' AND NOT EXISTS (
  SELECT 1 FROM pg_depend d
  WHERE d.classid = 'pg_event_trigger'::regclass AND d.objid = e.oid AND d.deptype = 'e')
ORDER BY 1
"""


@cache
def foreign_objects() -> str:
    """The statement that selects them, by their kinds and names. It changes nothing."""
    names = ",".join(sorted(table_names("postgresql")))
    return _QUERY.format(names=names, types=_TYPES, first=_FIRST_NUMBER)
