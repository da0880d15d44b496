"""The secret manager over HTTP: an API, pages, and a stream of changes. HTTP and nothing else."""
