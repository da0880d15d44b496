"""Runs a Model: a supervisor without user code, a worker with it, HTTP between client and worker."""
