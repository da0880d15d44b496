"""The Python environment of a model folder: decided, made with uv, and kept in the cache."""
