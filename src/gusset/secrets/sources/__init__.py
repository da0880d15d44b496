"""Where a runtime reads secrets from."""
