"""The Python environment of a model folder: what it asks for, and whether this Python has it."""
