"""gusset: secrets for models, from the person who types them to the code that uses them."""

__version__ = "0.1.0"


def is_compiled() -> bool:
    """Whether Python runs the modules that mypyc has compiled, instead of their source."""
    from importlib.util import find_spec  # few commands need it

    spec = find_spec("gusset.runtime.http_connection")
    return spec is not None and not str(spec.origin).endswith(".py")
