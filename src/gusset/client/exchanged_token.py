"""The token that a workload gets for its platform's JSON Web Token, renewed before it expires."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gusset.errors import TokenAmbiguous, TokenRefused, TooManyAttempts, Unreachable, UsageError
from gusset.secrets.value import SecretValue

MAX_BYTES = 65_536  # of the file
PAUSE = 20.0  # seconds until a token that was refused is shown again, unless the file has another
_EARLIEST, _LATEST = 0.4, 0.2  # the part of its life that a token has left when a new one is fetched

Post = Callable[[str, Mapping[str, str]], Mapping[str, Any]]
"""Sends a form to a path of the manager that is used now, and returns the JSON object of the response."""

_FORM = {
    "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
    "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
}


class ExchangedToken:
    """A deployment's short-lived token. Thread-safe.

    The file is read at each exchange, since the platform replaces it. `deployment` is named where
    the file's token stands for several.
    """

    def __init__(self, file: Path, deployment: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._deployment = deployment
        self._clock = clock
        self._lock = threading.Lock()
        self._token: SecretValue | None = None
        self._ends = 0.0  # when the token does
        self._renewed_at = 0.0  # when the next one is fetched
        self._refused: tuple[bytes, float, TokenRefused | TooManyAttempts] | None = None

    def __repr__(self) -> str:
        return f"ExchangedToken({str(self._file)!r})"

    def get(self, post: Post) -> SecretValue:
        """The token, exchanged by `post` if there is none that lives long enough.

        Raises:
            UsageError: the file cannot be read.
            TokenRefused: the manager refuses the file's token.
            Unreachable: the manager does not respond, or does not know the issuer's keys.
        """
        with self._lock:
            now = self._clock()
            if self._token is None or now >= self._renewed_at:
                try:
                    self._exchange(post, now)
                except (UsageError, TokenRefused, Unreachable):
                    if self._token is None or now >= self._ends:
                        raise
                    # It is good for a while: try again later.
                    self._renewed_at = min(self._ends, now + random.uniform(5.0, 15.0))  # noqa: S311
            assert self._token is not None  # noqa: S101  # else `_exchange` has raised
            return self._token

    def drop(self, token: bytes) -> None:
        """Stop using a token that the manager has refused."""
        with self._lock:
            if self._token is not None and self._token.reveal() == token:
                self._token = None

    def _exchange(self, post: Post, now: float) -> None:
        shown = self._read()
        if self._refused is not None:
            refused, until, error = self._refused
            if refused == shown and now < until:
                raise type(error)(error.message, hint=error.hint)
        try:
            response = self._request(post, shown)
        except (TokenRefused, TooManyAttempts) as error:
            pause = PAUSE * random.uniform(1.0, 1.5)  # noqa: S311
            self._refused = (shown, now + max(pause, getattr(error, "retry_after", None) or 0.0), error)
            raise
        self._refused = None
        token, lifetime = response.get("access_token"), response.get("expires_in")
        if not isinstance(token, str) or not isinstance(lifetime, int | float):
            raise Unreachable(
                "the response to the request for a token is not that of a gusset manager",
                hint="check the address, and what is between this process and the manager",
            )
        self._token = SecretValue(token.encode())
        self._ends = now + lifetime
        # The jitter keeps replicas from returning all at once.
        self._renewed_at = self._ends - lifetime * random.uniform(_LATEST, _EARLIEST)  # noqa: S311

    def _request(self, post: Post, shown: bytes) -> Mapping[str, Any]:
        form = {**_FORM, "subject_token": shown.decode("latin-1")}
        try:
            return post("/v1/token", form)
        except TokenAmbiguous:
            return post("/v1/token", form | {"audience": self._deployment})

    def _read(self) -> bytes:
        try:
            with self._file.open("rb") as file:
                token = file.read(MAX_BYTES).strip()
        except OSError as error:
            raise UsageError(f"cannot read the identity token file {self._file}: {error.strerror}") from None
        if not token:
            raise UsageError(f"the identity token file {self._file} is empty")
        if not token.isascii():
            raise UsageError(
                f"the identity token file {self._file} does not contain just a token",
                hint="have the platform's token written into it as ASCII text, without a byte order mark",
            )
        return token
