"""Coming in and going out: sign in, set up, choose a password. Hashing is slow on purpose."""

from __future__ import annotations

from gusset.errors import (
    Denied,
    GussetError,
    InvalidValue,
    NotSignedIn,
    TooManyAttempts,
    UsageError,
    outcome_of,
)
from gusset.manager.auth.bootstrap_link import BootstrapLink
from gusset.manager.auth.rate_limiter import RateLimiter
from gusset.manager.pages.page_types import Notice, Page, PageRequest, Redirect, local, told
from gusset.secrets.value import SecretValue
from gusset.vault.audit.audit_log import Actor

HOME = "/settings/secrets"


class AuthPages:
    """The pages for those who are not signed in, and what concerns one's own password."""

    def __init__(self, first: BootstrapLink | None) -> None:
        self._first = first
        self._failures = RateLimiter(limit=10, seconds=300.0)

    # --- sign in

    def sign_in_page(self, visit: PageRequest) -> Page | Redirect:
        """Asks for e-mail address and password."""
        if visit.somebody is not None:
            return Redirect(local(visit.query.get("next", "")))
        return _sign_in(visit, next_=visit.query.get("next", ""))

    def sign_in(self, visit: PageRequest) -> Page | Redirect:
        """A new session. After many failures, from one address or for one person, none for a while."""
        email, next_ = visit.form.text("email"), visit.form.raw("next")
        keys = (f"address {visit.address}", f"person {email.lower()[:254]}")
        try:
            self._check(*keys)
            _, session = visit.vault.people.sign_in(
                email, visit.form.password("password"), address=visit.address
            )
        except (NotSignedIn, TooManyAttempts) as error:
            if isinstance(error, NotSignedIn):
                for key in keys:
                    self._failures.count(key)
            return _sign_in(visit, next_=next_, email=email, fault=error)
        self._failures.reset(keys[1])
        return Redirect(local(next_), session=session)

    def _check(self, *keys: str) -> None:
        if any(self._failures.blocked(key) for key in keys):
            raise TooManyAttempts("that failed too often of late", hint="wait five minutes, then try again")

    def sign_out(self, visit: PageRequest) -> Redirect:
        """The session ends."""
        if visit.somebody is not None:
            visit.vault.people.sign_out(visit.session, actor=visit.somebody.actor)
        return Redirect("/signin", session="")

    # --- set up

    def setup_page(self, visit: PageRequest) -> Page:
        """Asks for the password of who has the link; of who sets the manager up, for their address too."""
        return self._setup(visit, visit.path["link"])

    def setup(self, visit: PageRequest) -> Page | Redirect:
        """The first administrator, or the password of an invited person; then they are signed in."""
        link, password = visit.form.raw("link"), visit.form.password("password")
        email = visit.form.text("email")
        try:
            _same(visit.form.raw("password"), visit.form.raw("again"))
            if self._is_first(visit, link):
                email = self._create_first(visit, email, password)
            else:
                email = visit.vault.people.accept(_link(link), password, address=visit.address).email
        except UsageError as error:
            return self._setup(visit, link, email=email, fault=error)
        _, session = visit.vault.people.sign_in(email, password, address=visit.address)
        return Redirect(HOME, Notice("ok", "You are signed in."), session=session)

    def _create_first(self, visit: PageRequest, email: str, password: SecretValue) -> str:
        actor = Actor("setup link", visit.address)
        return visit.vault.people.set_up(email, password, actor=actor).email

    def _setup(
        self, visit: PageRequest, link: str, *, email: str = "", fault: GussetError | None = None
    ) -> Page:
        first = self._is_first(visit, link)
        if not first:
            info = visit.vault.people.link_of(_link(link))
            email = visit.vault.people.get(info.user_id or "").email
        title = "Set up this manager" if first else "Choose a password"
        context = {"first": first, "link": link, "form": {"email": email}}
        return Page("setup.html", title, context, _fault(fault), outcome_of(fault).http if fault else 200)

    def _is_first(self, visit: PageRequest, link: str) -> bool:
        return self._first is not None and self._first.matches(link) and not visit.vault.people.anybody()

    # --- one's own account

    def account_page(self, visit: PageRequest) -> Page:
        """Who one is."""
        return _account(visit)

    def change_password(self, visit: PageRequest) -> Page | Redirect:
        """A new password, for who knows the old one."""
        caller, form = visit.caller, visit.form
        key = f"person {caller.person.email}"
        try:
            self._check(key)
            _same(form.raw("new"), form.raw("again"))
            visit.vault.people.change_password(
                caller.person,
                form.password("current"),
                form.password("new"),
                keep=visit.session,
                actor=caller.actor,
            )
        except (Denied, UsageError, TooManyAttempts) as error:
            if isinstance(error, Denied):
                self._failures.count(key)
            return _account(visit, fault=error)
        return Redirect("/settings/account", Notice("ok", "The password is changed."))


def _sign_in(visit: PageRequest, *, next_: str, email: str = "", fault: GussetError | None = None) -> Page:
    context = {"next": local(next_), "form": {"email": email}}
    status = outcome_of(fault).http if fault else 200
    return Page("signin.html", "Sign in", context, _fault(fault), status)


def _account(visit: PageRequest, *, fault: GussetError | None = None) -> Page:
    context = {"form": {"error": told(fault)}}
    return Page("account.html", "Account", context, status=outcome_of(fault).http if fault else 200)


def _fault(error: GussetError | None) -> Notice | None:
    return Notice("error", told(error) or "") if error else None


def _same(one: str, other: str) -> None:
    if one != other:
        raise InvalidValue("the two passwords are not the same")


def _link(text: str) -> SecretValue:
    return SecretValue(text.encode("utf-8", "surrogatepass"))
