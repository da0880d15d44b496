"""Secrets as files in memory."""
