"""Delivery of values to deployments, and the stream of changes."""
