"""gusset: secrets for models, from the person who types them to the code that uses them."""

__version__ = "0.1.0"
