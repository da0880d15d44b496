"""Connections into a container's network."""
