"""Sealing, keys and passwords. No other package uses a cipher."""
