"""Group commit: concurrent writes share one durable transaction."""
