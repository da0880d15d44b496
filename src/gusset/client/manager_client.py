"""HTTP requests to a manager: its address, the API key, and its errors as gusset's own."""

# Imports in functions: httpx is slow to import.

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gusset import errors
from gusset.addresses import is_loopback
from gusset.errors import GussetError, Unreachable, UsageError
from gusset.secrets.value import SecretValue

if TYPE_CHECKING:
    import httpx

TIMEOUT = 10.0  # seconds for a response
_MAX_MESSAGE = 2000  # characters of the manager's message that are repeated


class ManagerClient:
    """Requests to one manager, authenticated by `key`.

    Every method raises NotSignedIn or Denied when the manager refuses the key,
    Unreachable when there is no response from a gusset manager, and otherwise
    the error that the response names.
    """

    def __init__(self, url: str, key: SecretValue, *, insecure_http: bool = False) -> None:
        self.url = checked_url(url, insecure_http=insecure_http)
        self.host = urlsplit(self.url).netloc
        self._key = key
        self._http: httpx.Client | None = None

    def __repr__(self) -> str:
        return f"ManagerClient({self.url!r})"

    def close(self) -> None:
        if self._http is not None:
            self._http.close()

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str] = {},
        headers: Mapping[str, str] = {},
    ) -> dict[str, Any]:
        """Send one request to the API; the JSON object of the response."""
        import httpx

        try:
            response = self.http.request(
                method, path, json=body, params=query, headers={**self.auth_headers(), **headers}
            )
        except httpx.HTTPError as error:
            raise self.unreachable(error) from None
        return self.parse_response(response.status_code, response.content)

    @property
    def http(self) -> httpx.Client:
        """The connection pool, opened when it is first used."""
        if self._http is None:
            import httpx  # most commands need none of this

            logging.getLogger("httpx").setLevel(logging.WARNING)
            self._http = httpx.Client(base_url=self.url, timeout=TIMEOUT, follow_redirects=False)
        return self._http

    def auth_headers(self) -> dict[str, str]:
        return {"authorization": "Bearer " + self._key.reveal().decode("latin-1")}

    def parse_response(self, status: int, content: bytes) -> dict[str, Any]:
        """The JSON object of a successful response; for others, raise the error that they name."""
        try:
            data = json.loads(content)
        except ValueError:
            data = None
        if status == 200 and isinstance(data, dict):
            return data
        if isinstance(data, dict) and isinstance(data.get("code"), str):
            raise _error(status, data)
        raise Unreachable(
            f"{self.host} does not respond as a gusset manager does (HTTP {status})",
            hint="check the address: is it the manager's?",
        )

    def unreachable(self, error: Exception) -> Unreachable:
        """The error for a failed connection. The text of `error` is left out: it may contain anything."""
        return Unreachable(
            f"the manager at {self.host} does not respond ({type(error).__name__})",
            hint="check that it is running, and that the address is right",
        )


def _classes_by_code(cls: type[GussetError]) -> Iterator[tuple[str, type[GussetError]]]:
    yield cls.code, cls
    for subclass in cls.__subclasses__():
        yield from _classes_by_code(subclass)


_CLASS_BY_CODE = dict(_classes_by_code(GussetError))
# Errors about files of this machine, or that need more than a message.
_LOCAL_ERRORS = (errors.ConfigInvalid, errors.CheckFailed, errors.SecretsMissing, errors.SecretLookupError)


def _error(status: int, data: Mapping[str, Any]) -> GussetError:
    """The error that a response names by its code."""
    cls = _CLASS_BY_CODE.get(data["code"], GussetError)
    if status >= 500 or cls is GussetError or issubclass(cls, _LOCAL_ERRORS):
        cls = Unreachable if status >= 500 else UsageError
    message, hint = data.get("message", "the manager refused the request"), data.get("hint")
    return cls(str(message)[:_MAX_MESSAGE], hint=str(hint)[:_MAX_MESSAGE] if hint else None)


def checked_url(url: str, *, insecure_http: bool = False) -> str:
    """The address of a manager, without a trailing slash.

    Raises:
        UsageError: it is not an HTTP address, contains a password, or would send
            keys and values over the network in plain text.
    """
    url = url.rstrip("/")
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is not a number, or a broken IPv6 address
        valid = False
    if not valid or parts.hostname is None:
        raise UsageError("the manager's address has the form https://HOST or http://127.0.0.1:8700")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            "the manager's address must not contain a user, a password or a query", hint="see `gusset login`"
        )
    if parts.scheme == "http" and not insecure_http and not is_loopback(parts.hostname):
        raise UsageError(
            f"plain HTTP to {parts.hostname} would let others on the network read keys and values",
            hint="use https://, or --insecure-http if you mean it",
        )
    return url
