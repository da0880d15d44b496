"""Builds container images, and runs one with its secrets as files: engine, network, secrets, proxy."""
