"""What a page's handler is given and gives back: a visit, and something shown or somewhere to go.

A handler is a plain function of a `PageRequest`; it runs on a thread, since it asks
the vault. Nothing here knows of routes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from gusset.errors import GussetError, InvalidValue, NotSignedIn, UsageError
from gusset.manager.auth.callers import PersonCaller
from gusset.secrets.value import SecretValue
from gusset.vault.services.people import TeamInfo
from gusset.vault.wiring import Vault

_MOST_NOTICE = 3000  # bytes: it travels in a cookie


@dataclass(frozen=True, slots=True)
class Form:
    """What a form sent: its fields, each as often as it came, and the file, if one was chosen."""

    fields: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)
    file: bytes | None = field(default=None, repr=False)

    def text(self, name: str) -> str:
        """A field's text, without white space around it; empty where it did not come."""
        return self.raw(name).strip()

    def raw(self, name: str) -> str:
        """A field's text as it came."""
        return next(iter(self.fields.get(name, ())), "")

    def all(self, name: str) -> list[str]:
        return list(self.fields.get(name, ()))

    def password(self, name: str) -> SecretValue:
        return SecretValue(self.raw(name).encode("utf-8", "surrogatepass"))

    def value(self) -> SecretValue:
        """The value for a secret that was typed or chosen as a file.

        A form writes each line end as CR LF, also those that nobody typed so;
        a field holds LF alone, and that is what is meant. A file is exact.

        Raises:
            InvalidValue: both came, or nothing, and nothing was not said to be meant.
        """
        typed = self.raw("value").replace("\r\n", "\n").encode("utf-8", "surrogatepass")
        if typed and self.file is not None:
            raise InvalidValue("there is a value in the field and a file too: give one of them")
        value = typed if self.file is None else self.file
        if not value and self.raw("empty") != "yes":
            raise InvalidValue("the value is empty: type it, choose a file, or say that empty is meant")
        return SecretValue(value)

    def date(self, name: str) -> datetime | None:
        """The last second of a day; None where no date was given. Raises UsageError for what is no date."""
        text = self.text(name)
        if not text:
            return None
        try:
            return datetime.strptime(text, "%Y-%m-%d").replace(hour=23, minute=59, second=59, tzinfo=UTC)
        except ValueError:
            raise UsageError("that is not a date: write it as 2026-12-31") from None


@dataclass(frozen=True, slots=True)
class Notice:
    """What came of it, to be said on the next page."""

    kind: Literal["ok", "warning", "error"]
    text: str
    undo_url: str | None = None
    force_url: str | None = None
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """A page to be made of a template; of `part` alone, where the page itself asks for what changed."""

    template: str
    title: str
    context: Mapping[str, Any] = field(default_factory=dict)
    notice: Notice | None = None
    status: int = 200
    part: str | None = None


@dataclass(frozen=True, slots=True)
class Redirect:
    """Somewhere else to go, with what to say there. `session`: a new one, or "" to end the one there is."""

    to: str
    notice: Notice | None = None
    session: SecretValue | Literal[""] | None = None


@dataclass(frozen=True, slots=True)
class Download:
    """A file, in pieces."""

    name: str
    kind: str
    pieces: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class PageRequest:
    """One request for a page. Of a page that needs nobody signed in, `somebody` may be None."""

    vault: Vault
    somebody: PersonCaller | None
    session: str = field(repr=False)
    address: str | None
    path: Mapping[str, str]
    query: Mapping[str, str]
    form: Form
    here: str  # scheme and host, as the browser knows them
    now: datetime

    @property
    def caller(self) -> PersonCaller:
        """Raises NotSignedIn."""
        if self.somebody is None:
            raise NotSignedIn("nobody is signed in")
        return self.somebody

    def teams(self) -> Sequence[TeamInfo]:
        return self.caller.teams


def told(error: GussetError | None) -> str | None:
    """An error as a page says it."""
    if error is None:
        return None
    text = f"{error.message}. {error.hint}" if error.hint else error.message
    return text[:1].upper() + text[1:]


def csrf_of(session: str) -> str:
    """The token that forms of a session carry: only who has the session can know it."""
    return _derived("csrf", session).hex()


def _derived(use: str, session: str) -> bytes:
    return hashlib.sha256(f"{use}:{session}".encode("utf-8", "surrogateescape")).digest()


def sealed_notice(notice: Notice, session: str) -> str:
    """A notice as a cookie, which only this session takes."""
    said = json.dumps(asdict(notice)).encode()
    if len(said) > _MOST_NOTICE:
        said = json.dumps(asdict(notice) | {"details": (), "text": notice.text[:300]}).encode()
    mac = hmac.digest(_derived("notice", session), said, "sha256")
    return base64.urlsafe_b64encode(mac + said).decode().rstrip("=")


def opened_notice(text: str | None, session: str) -> Notice | None:
    """The notice of a cookie, None for one that was not made for this session."""
    if not text:
        return None
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return None
    mac, said = data[:32], data[32:]
    if not hmac.compare_digest(mac, hmac.digest(_derived("notice", session), said, "sha256")):
        return None
    found = json.loads(said)
    return Notice(**{**found, "details": tuple(found["details"])})


def local(url: str, default: str = "/settings/secrets") -> str:
    """`url` where it is a page of the settings, else `default`: a link may not send people elsewhere."""
    good = url.startswith("/settings/") and url.isascii() and url.isprintable() and "\\" not in url
    return url if good and ".." not in url else default
