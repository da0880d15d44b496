"""Builds the image of a folder: recipes as plain data, the context on disk, and the engine's build."""
