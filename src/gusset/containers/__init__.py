"""Secrets as files for processes and containers that are not a Model."""
