"""The process that keeps workers running. No user code runs in it."""
