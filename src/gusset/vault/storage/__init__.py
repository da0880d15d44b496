"""The database: schema, migrations, statements."""
