"""The process that runs a model's code, and the shim above it."""
