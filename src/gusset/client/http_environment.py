"""The proxies and certificates that httpx takes from the environment, and errors about them."""

# Imports in functions: httpx is slow to import.

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gusset.errors import UsageError


@contextmanager
def environment_errors() -> Iterator[None]:
    """Within the context, where an `httpx.Client` is made, errors about the environment are explained.

    No message repeats a variable, which may have a password.

    Raises:
        UsageError: what a variable names cannot be used.
    """
    import httpx

    try:
        yield
    except (httpx.InvalidURL, ValueError, ImportError):  # for SOCKS, httpx needs another library
        raise UsageError(
            "a proxy that the environment names cannot be used",
            hint="write HTTPS_PROXY, HTTP_PROXY and ALL_PROXY as http://HOST:PORT, or unset them",
        ) from None
    except OSError as error:  # ssl.SSLError, too
        raise UsageError(
            f"certificates that the environment names cannot be used: {error.strerror or 'they are not PEM'}",
            hint="correct SSL_CERT_FILE and SSL_CERT_DIR, or unset them",
        ) from None
