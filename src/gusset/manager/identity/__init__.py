"""Workload identity: JSON Web Tokens of trusted issuers, exchanged for short-lived tokens."""
