"""The REST API for people."""
