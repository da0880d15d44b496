"""What a page handler receives and returns: a `PageRequest`; a `Page`, `Redirect` or `Download`.

A handler is a plain function. It runs in a thread, since it reads the vault and renders.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from gusset.errors import GussetError, InvalidValue, NotSignedIn, UsageError
from gusset.manager.auth.callers import PersonCaller
from gusset.secrets.value import SecretValue
from gusset.vault.services.person import TeamInfo
from gusset.vault.wiring import Vault


@dataclass(frozen=True, slots=True)
class Form:
    """A submitted form: the values of each field, and the content of the file if one was chosen."""

    fields: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)
    file: bytes | None = field(default=None, repr=False)

    def text(self, name: str) -> str:
        """A field's text without surrounding white space; empty if the field is missing."""
        return self.raw(name).strip()

    def raw(self, name: str) -> str:
        """A field's text as submitted; empty if the field is missing."""
        return next(iter(self.fields.get(name, ())), "")

    def all(self, name: str) -> list[str]:
        """All values of a field, such as those of checkboxes."""
        return list(self.fields.get(name, ()))

    def password(self, name: str) -> SecretValue:
        return SecretValue(self.raw(name).encode("utf-8", "surrogatepass"))

    def value(self) -> SecretValue:
        """The value for a secret, typed or from a file.

        Browsers submit every line end of a text field as CR LF, so each one is stored
        as LF. A file is stored exactly.

        Raises:
            InvalidValue: both were given; or nothing, without the box for an empty value.
        """
        typed = self.raw("value").replace("\r\n", "\n").encode("utf-8", "surrogatepass")
        if typed and self.file is not None:
            raise InvalidValue("both a value and a file were given: use only one")
        value = typed if self.file is None else self.file
        if not value and self.raw("empty") != "yes":
            raise InvalidValue("the value is empty: type it, choose a file, or tick 'Store even if empty'")
        return SecretValue(value)

    def date(self, name: str) -> datetime | None:
        """The last second of a day in UTC; None if the field is empty. Raises UsageError if invalid."""
        text = self.text(name)
        if not text:
            return None
        try:
            return datetime.strptime(text, "%Y-%m-%d").replace(hour=23, minute=59, second=59, tzinfo=UTC)
        except ValueError:
            raise UsageError("this is not a date: write it like 2026-12-31") from None


@dataclass(frozen=True, slots=True)
class Notice:
    """A flash notice: the outcome of a form, shown on the next page."""

    kind: Literal["ok", "warning", "error"]
    text: str
    _: KW_ONLY
    undo_url: str | None = None
    force_url: str | None = None
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page to render from a template; for an htmx request, from the template `part` if there is one."""

    template: str
    title: str
    context: Mapping[str, Any] = field(default_factory=dict)
    notice: Notice | None = None
    status: int = 200
    part: str | None = None
    retry_after: float | None = None  # seconds


@dataclass(frozen=True, slots=True)
class Redirect:
    """A redirect, with a notice for the next page. `session` is a new session; "" ends the current one.

    `device` is the text of a cookie by which the browser is known from now on; see `sign_device`.
    """

    location: str
    notice: Notice | None = None
    session: SecretValue | Literal[""] | None = None
    device: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Download:
    """A file to save, sent in chunks."""

    filename: str
    media_type: str
    chunks: Iterator[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRequest:
    """A request for a page. `signed_in` may be None only on pages that anybody may open.

    `session` is the text of the session's cookie, whether or not anybody is signed in by it.
    """

    vault: Vault
    signed_in: PersonCaller | None
    session: str = field(repr=False)
    device: str = field(repr=False)  # the cookie of a known browser, not yet verified
    address: str | None
    path: Mapping[str, str]
    query: Mapping[str, str]
    form: Form
    base_url: str  # scheme and host, as the browser knows them
    now: datetime

    @property
    def caller(self) -> PersonCaller:
        """The person who is signed in. Raises NotSignedIn."""
        if self.signed_in is None:
            raise NotSignedIn("you are not signed in")
        return self.signed_in

    def teams(self) -> Sequence[TeamInfo]:
        return self.caller.teams


def error_text(error: GussetError) -> str:
    """An error's message and hint as sentences for a page."""
    text = f"{error.message}. {error.hint}" if error.hint else error.message
    return text[:1].upper() + text[1:]


def local_url(url: str, default: str = "/settings/secrets") -> str:
    """`url` if it is one of the settings pages, else `default`: no link may redirect to another site."""
    valid = url.startswith("/settings/") and url.isascii() and url.isprintable() and "\\" not in url
    return url if valid and ".." not in url else default
