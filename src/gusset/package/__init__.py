"""A model folder: its config.yaml and its code, read and checked, never run."""
