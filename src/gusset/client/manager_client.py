"""HTTP requests to managers: their addresses, the API key, and their errors as gusset's own."""

# Imports in functions: httpx is slow to import.

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from math import inf
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gusset import errors
from gusset.addresses import is_host, is_loopback
from gusset.client.exchanged_token import ExchangedToken
from gusset.client.http_environment import environment_errors
from gusset.errors import GussetError, ResponseLost, Unreachable, UsageError
from gusset.secrets.value import SecretValue

if TYPE_CHECKING:
    import ssl

    import httpx

TIMEOUT = 10.0  # seconds for a response
KEPT_SECONDS = 30.0  # that a connection stays open for the next request: longer than between two renewals
_BEARER = "Bearer "
_LONGEST_PAUSE = 300.0  # seconds that a manager can ask for with Retry-After
_MAX_MESSAGE = 2000  # characters of the manager's message that are repeated


class ManagerClient:
    """Requests to a manager, authenticated by `key`.

    It may have several addresses: those of managers that share one vault. When one
    does not respond, or responds with 503, the next is tried, and used from then on.

    Every method raises NotSignedIn or Denied when the manager refuses the key,
    Unreachable when there is no response from a gusset manager, and otherwise
    the error that the response names.
    """

    def __init__(
        self,
        url: str,
        key: SecretValue | ExchangedToken,
        *,
        insecure_http: bool = False,
        ca_certificates: Path | None = None,
    ) -> None:
        """`url` is an address, or several with commas between them.

        `ca_certificates` is a file with certificates (PEM) that are trusted besides the public ones.
        """
        urls = checked_urls(url, insecure_http=insecure_http)
        # In random order, so that the clients of a manager that fails spread over the others.
        self._urls = random.sample(urls, len(urls))
        self._current = 0
        self._key = key
        self._ca_certificates = ca_certificates
        self._http: dict[tuple[int, str], httpx.Client] = {}  # by process: a fork has connections of its own

    def __repr__(self) -> str:
        return f"ManagerClient({','.join(self._urls)!r})"

    @property
    def url(self) -> str:
        """The address of the manager that is used now."""
        return self._urls[self._current]

    @property
    def host(self) -> str:
        """Its host and port."""
        return urlsplit(self.url).netloc

    def close(self) -> None:
        for (process, _), http in self._http.items():
            if process == os.getpid():
                http.close()

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str] = {},
        headers: Mapping[str, str] = {},
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Send one request to the API; the JSON object of the response.

        `timeout`: for how many seconds each manager may send nothing; `TIMEOUT` unless it is given.
        Infinite for a response that takes work: nothing is sent before it is done.
        """
        sent, options = dict(headers), dict[str, Any](json=body, params=query)
        if timeout is not None:
            import httpx

            options["timeout"] = httpx.Timeout(
                min(timeout, TIMEOUT), read=None if timeout == inf else timeout
            )
        if len(self._urls) > 1 and method != "GET" and _heeds_key(path):
            sent["idempotency-key"] = token_hex(16)  # what the first manager has done is not done again
        return self._once(self._first_response(lambda: self._send(method, path, headers=sent, **options)))

    def share(self, seconds: float) -> float:
        """The `timeout` with which all managers together take about so many seconds, if none responds."""
        return min(TIMEOUT, seconds / len(self._urls))

    def json_lines(self, path: str) -> Iterator[dict[str, Any]]:
        """The objects in the lines of a long response, as they come.

        Once it has begun, no other manager is tried.
        """
        import httpx

        response = self._first_response(lambda: self._send("GET", path, headers={}, stream=True))
        try:
            with closing(response):
                if response.status_code != 200:
                    response.read()
                    self.parse_response(response)
                yield from map(self._json_line, _lines(response.iter_bytes()))
        except httpx.HTTPError as error:
            raise self.unreachable(error) from None

    def _json_line(self, line: bytes) -> dict[str, Any]:
        try:
            data = json.loads(line)
        except ValueError:
            data = None
        if not isinstance(data, dict):
            raise self.not_a_manager()
        return data

    def _first_response(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        """The response of the first manager that is available; `send` sends to the one that is used."""
        import httpx

        failure: Unreachable
        for _ in self._urls:
            used = self.url
            try:
                response = send()
                if response.status_code != 503:
                    return response
                response.read()  # of a response whose body has not been read yet
                failure = self._unavailable(response)
            except (httpx.HTTPError, UnicodeError) as error:  # a proxy whose name cannot be looked up
                failure = self.unreachable(error)
            except Unreachable as error:  # an exchange failed
                failure = error
            self.use_another_than(used)
        raise failure

    def _once(self, response: httpx.Response) -> dict[str, Any]:
        try:
            return self.parse_response(response)
        except ResponseLost as error:  # its hint is for who chose the key
            error.hint = "check what the request changed; a key or token that was lost can only be revoked"
            raise

    def _send(
        self, method: str, path: str, *, headers: Mapping[str, str], stream: bool = False, **options: Any
    ) -> httpx.Response:
        """Send a request with the key. A token that was exchanged, and is refused, is exchanged once more.

        The body of the response is read unless it is a `stream`, which the caller closes.
        """

        def send(key: Mapping[str, str]) -> httpx.Response:
            request = self.http.build_request(method, path, headers={**key, **headers}, **options)
            return self.http.send(request, stream=stream)

        sent = self.auth_headers()
        response = send(sent)
        if response.status_code == 401 and self.drop_token(sent):
            response.close()
            response = send(self.auth_headers())
        return response

    def use_another_than(self, url: str) -> None:
        """Use the next manager, unless the one at `url` is no longer the one that is used."""
        if url == self.url:
            self._current = (self._current + 1) % len(self._urls)

    @property
    def http(self) -> httpx.Client:
        """The connection pool of the manager that is used now, opened when it is first used."""
        url = self.url
        key = (os.getpid(), url)
        if key not in self._http:
            import httpx  # most commands need none of this

            logging.getLogger("httpx").setLevel(logging.WARNING)
            try:
                _ = httpx.URL(url).host
            except (httpx.InvalidURL, UnicodeError):  # a name in another alphabet that cannot exist
                raise _not_an_address() from None
            limits = httpx.Limits(keepalive_expiry=KEPT_SECONDS)
            with environment_errors():
                self._http[key] = httpx.Client(
                    base_url=url,
                    timeout=TIMEOUT,
                    follow_redirects=False,
                    limits=limits,
                    verify=True if self._ca_certificates is None else _trusting(self._ca_certificates),
                )
        return self._http[key]

    def auth_headers(self) -> dict[str, str]:
        """The header with the key. Raises as `ExchangedToken.get` does, where the key is one."""
        key = self._key.get(self._post_form) if isinstance(self._key, ExchangedToken) else self._key
        return {"authorization": _BEARER + key.reveal().decode("latin-1")}

    def drop_token(self, sent: Mapping[str, str]) -> bool:
        """Stop using the refused token in `sent`. Returns False for a key that cannot be replaced."""
        if not isinstance(self._key, ExchangedToken):
            return False
        self._key.drop(sent["authorization"].removeprefix(_BEARER).encode("latin-1"))
        return True

    @property
    def exchanges_tokens(self) -> bool:
        """Whether the key is a short-lived token, got for one of the workload's platform."""
        return isinstance(self._key, ExchangedToken)

    def _post_form(self, path: str, form: Mapping[str, str]) -> dict[str, Any]:
        import httpx

        try:
            response = self.http.post(path, data=form)
        except (httpx.HTTPError, UnicodeError) as error:
            raise self.unreachable(error) from None
        return self.parse_response(response)

    def parse_response(self, response: httpx.Response) -> dict[str, Any]:
        """The JSON object of a successful response; for others, raise the error that they name."""
        try:
            data = json.loads(response.content)
        except ValueError:
            data = None
        if response.status_code == 200 and isinstance(data, dict):
            return data
        if isinstance(data, dict) and isinstance(data.get("code"), str):
            raise _error(response, data)
        raise self.not_a_manager(response.status_code, retry_after=_retry_after(response))

    def not_a_manager(self, status: int = 200, *, retry_after: float | None = None) -> Unreachable:
        """The error for a response that a gusset manager does not give, such as that of a proxy before it."""
        return Unreachable(
            f"{self.host} does not respond as a gusset manager does (HTTP {status})",
            hint="check the address: is it the manager's?",
            retry_after=retry_after,
        )

    def _unavailable(self, response: httpx.Response) -> Unreachable:
        try:
            self.parse_response(response)
        except Unreachable as error:
            return error
        raise AssertionError("a response with 503 is an error")

    def unreachable(self, error: Exception) -> Unreachable:
        """The error for a failed connection. The text of `error` is left out: it may contain anything."""
        return Unreachable(
            f"the manager at {self.host} does not respond ({type(error).__name__})",
            hint="check that it is running, and that the address is right",
        )


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines, which end with a line feed: other separators may be in a text."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _heeds_key(path: str) -> bool:
    """Whether a route heeds an `Idempotency-Key`: it is one of people's, or a report that is counted."""
    of_deployment = path == "/v1/deployment" or path.startswith("/v1/deployment/")
    return not of_deployment or path == "/v1/deployment/masked"


def _classes_by_code(cls: type[GussetError]) -> Iterator[tuple[str, type[GussetError]]]:
    yield cls.code, cls
    for subclass in cls.__subclasses__():
        yield from _classes_by_code(subclass)


_CLASS_BY_CODE = dict(_classes_by_code(GussetError))
# Errors about files of this machine, or that need more than a message.
_LOCAL_ERRORS = (errors.ConfigInvalid, errors.CheckFailed, errors.SecretsMissing, errors.SecretLookupError)


def _error(response: httpx.Response, data: Mapping[str, Any]) -> GussetError:
    """The error that a response names by its code."""
    status, cls = response.status_code, _CLASS_BY_CODE.get(data["code"], GussetError)
    if issubclass(cls, Unreachable) and status >= 500:
        pass
    elif status >= 500 or cls is GussetError or issubclass(cls, _LOCAL_ERRORS):
        cls = Unreachable if status >= 500 else UsageError
    message, hint = data.get("message", "the manager refused the request"), data.get("hint")
    error = cls(str(message)[:_MAX_MESSAGE], hint=str(hint)[:_MAX_MESSAGE] if hint else None)
    if isinstance(error, Unreachable):
        error.retry_after = _retry_after(response)
    return error


def _retry_after(response: httpx.Response) -> float | None:
    """The seconds of the header Retry-After, at most `_LONGEST_PAUSE`; None without it."""
    text = response.headers.get("retry-after", "")
    return min(float(text), _LONGEST_PAUSE) if text.isascii() and text.isdigit() else None


def _trusting(ca_certificates: Path) -> ssl.SSLContext:
    """How connections are verified: also with these certificates. Raises UsageError."""
    import httpx

    context = httpx.create_ssl_context()
    try:
        context.load_verify_locations(cafile=ca_certificates)
    except OSError as error:  # ssl.SSLError, too
        raise UsageError(
            f"{ca_certificates} cannot be used for the manager: {error.strerror or 'it is not PEM'}",
            hint="GUSSET_MANAGER_CA names a file with CA certificates",
        ) from None
    return context


def checked_urls(text: str, *, insecure_http: bool = False) -> tuple[str, ...]:
    """The addresses of managers in `text`, which has commas between them. Raises as `checked_url` does."""
    urls = [checked_url(url.strip(), insecure_http=insecure_http) for url in text.split(",")]
    return tuple(dict.fromkeys(urls))


def checked_url(url: str, *, insecure_http: bool = False) -> str:
    """The address of a manager, without a trailing slash.

    Raises:
        UsageError: it is not an HTTP address, contains a password, or would send
            keys and values over the network in plain text.
    """
    url = url.rstrip("/")
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and is_host(parts.hostname or "") and parts.port != 0
    except ValueError:  # a port that is not a number, or a broken IPv6 address
        valid = False
    if not valid or parts.hostname is None or not url.isprintable():
        raise _not_an_address()
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


def _not_an_address() -> UsageError:
    return UsageError("the manager's address has the form https://HOST or http://127.0.0.1:8700")
