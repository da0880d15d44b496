"""Pages for signing in and out, setup, and one's own password. Password hashing makes these handlers slow."""

from __future__ import annotations

from gusset.addresses import network_of
from gusset.errors import (
    Denied,
    GussetError,
    InvalidValue,
    NotSignedIn,
    TooManyAttempts,
    UsageError,
    outcome_of,
)
from gusset.manager.auth.attempt_limiter import AttemptLimiter
from gusset.manager.auth.bootstrap_link import BootstrapLink
from gusset.manager.pages.page_types import Notice, Page, PageRequest, Redirect, error_text, local_url
from gusset.manager.pages.session_tokens import known_device, sign_device
from gusset.secrets.value import SecretValue
from gusset.vault.audit.actor import Actor
from gusset.vault.services.password_attempts import AttemptLimit, PasswordAttempt

HOME = "/settings/secrets"
_WINDOW = 300.0  # seconds

_BY_BROWSER = AttemptLimit(name="browser", burst=10, seconds=_WINDOW)
_BY_ACCOUNT_AND_ADDRESS = AttemptLimit(name="account and address", burst=10, seconds=_WINDOW)
_BY_ADDRESS = AttemptLimit(name="address", burst=50, seconds=_WINDOW)
_BY_ACCOUNT = AttemptLimit(name="account", burst=100, seconds=_WINDOW)
_CHANGES = AttemptLimit(name="changes", burst=10, seconds=_WINDOW)
_SIGN_OUTS = AttemptLimit(name="sign-outs", burst=10, seconds=_WINDOW)
_SIGN_OUTS_BY_ADDRESS = AttemptLimit(name="sign-outs by address", burst=50, seconds=_WINDOW)


class AuthPages:
    """Sign-in, setup and account pages, with rate limits on failed passwords.

    A guesser is limited by address, and by account and address. All addresses together are
    limited by account, too. A browser that has signed in to the account before has a limit of its own.
    All managers of a vault count together.
    """

    def __init__(self, bootstrap_link: BootstrapLink | None) -> None:
        self._bootstrap_link = bootstrap_link
        of_passwords = (_BY_BROWSER, _BY_ACCOUNT_AND_ADDRESS, _BY_ADDRESS, _BY_ACCOUNT, _CHANGES)
        self._limiter = AttemptLimiter((*of_passwords, _SIGN_OUTS, _SIGN_OUTS_BY_ADDRESS))

    # --- signing in and out

    def sign_in_page(self, request: PageRequest) -> Page | Redirect:
        """The sign-in form; whoever is signed in goes straight to the next page."""
        next_url = request.query.get("next", "")
        if request.signed_in is not None:
            return Redirect(local_url(next_url))
        return _sign_in_form(next_url=next_url)

    def sign_in(self, request: PageRequest) -> Page | Redirect:
        """Start a session. Failures are limited, see the class."""
        email, next_url = request.form.text("email"), request.form.raw("next")
        vault, attempts = request.vault, self._attempts(request, email)
        try:
            self._limiter.take(vault.password_attempts, attempts)
            person, session = vault.sessions.sign_in(
                email,
                request.form.password("password"),
                address=request.address,
                also=lambda transaction: vault.password_attempts.give_back(transaction, attempts),
            )
        except (NotSignedIn, TooManyAttempts) as error:
            return _sign_in_form(next_url=next_url, email=email, error=error)
        self._limiter.give_back(attempts)
        return Redirect(local_url(next_url), session=session, device=_device(request, person.email))

    def _attempts(self, request: PageRequest, email: str) -> list[PasswordAttempt]:
        """What an attempt to sign in counts for."""
        account, address = _account(email), network_of(request.address)
        if device := known_device(request.device, account, _device_key(request)):
            return [PasswordAttempt(_BY_BROWSER, f"{device} {account}")]
        return [
            PasswordAttempt(_BY_ACCOUNT_AND_ADDRESS, f"{address} {account}"),
            PasswordAttempt(_BY_ADDRESS, address),
            PasswordAttempt(_BY_ACCOUNT, account),
        ]

    def sign_out(self, request: PageRequest) -> Redirect:
        """End the session, also one without a row: this may have been removed, to be put back later."""
        sessions = request.vault.sessions
        if request.signed_in is not None:
            sessions.sign_out(request.session, actor=request.signed_in.actor)
        elif sessions.is_genuine(request.session):
            attempts = [
                PasswordAttempt(_SIGN_OUTS, request.session),
                PasswordAttempt(_SIGN_OUTS_BY_ADDRESS, network_of(request.address)),
            ]
            self._limiter.take(request.vault.password_attempts, attempts)  # each leaves an audit record
            sessions.sign_out(request.session, actor=Actor("somebody", request.address))
        return Redirect("/signin", session="")

    # --- setup

    def setup_page(self, request: PageRequest) -> Page:
        """The form behind a setup link: a password, and for the first administrator an email address too."""
        return self._setup_form(request, request.path["link"])

    def setup(self, request: PageRequest) -> Page | Redirect:
        """Create the first administrator or set an invited person's password, then sign them in."""
        link, password = request.form.raw("link"), request.form.password("password")
        email = request.form.text("email")
        try:
            _check_same(request.form.raw("password"), request.form.raw("again"))
            if self._is_bootstrap(request, link):
                actor = Actor("setup link", request.address)
                email = request.vault.people.set_up(email, password, actor=actor).email
            else:
                email = request.vault.invitations.accept(_link(link), password, address=request.address).email
        except UsageError as error:
            return self._setup_form(request, link, email=email, error=error)
        _, session = request.vault.sessions.sign_in(email, password, address=request.address)
        notice = Notice("ok", "You are signed in.")
        return Redirect(HOME, notice, session=session, device=_device(request, email))

    def _setup_form(
        self, request: PageRequest, link: str, *, email: str = "", error: GussetError | None = None
    ) -> Page:
        first = self._is_bootstrap(request, link)
        if not first:
            info = request.vault.invitations.check_link(_link(link))
            email = request.vault.people.get(info.user_id or "").email
        return Page(
            template="setup.html",
            title="Set up this manager" if first else "Choose a password",
            context={"first": first, "link": link, "form": {"email": email}},
            notice=_error_notice(error),
            status=_status(error),
        )

    def _is_bootstrap(self, request: PageRequest, link: str) -> bool:
        bootstrap_link = self._bootstrap_link
        return (
            bootstrap_link is not None and bootstrap_link.matches(link) and not request.vault.people.has_any()
        )

    # --- the account

    def account_page(self, request: PageRequest) -> Page:
        """The caller's profile, and a form to change the password."""
        return _account_page()

    def change_password(self, request: PageRequest) -> Page | Redirect:
        """Change the caller's password; the current one is needed."""
        caller, form, vault = request.caller, request.form, request.vault
        attempts = [PasswordAttempt(_CHANGES, caller.person.id)]
        try:
            self._limiter.take(vault.password_attempts, attempts)
            _check_same(form.raw("new"), form.raw("again"))
            vault.sessions.change_password(
                caller.person,
                form.password("current"),
                form.password("new"),
                keep=request.session,
                actor=caller.actor,
                also=lambda transaction: vault.password_attempts.give_back(transaction, attempts),
            )
        except (Denied, UsageError, TooManyAttempts) as error:
            return _account_page(error=error)
        self._limiter.give_back(attempts)
        return Redirect("/settings/account", Notice("ok", "Your password was changed."))


def _account(email: str) -> str:
    return email.strip().lower()[:254]


def _device(request: PageRequest, email: str) -> str:
    return sign_device(_account(email), _device_key(request))


def _device_key(request: PageRequest) -> bytes:
    return request.vault.derived_key("cookies of known browsers")


def _sign_in_form(*, next_url: str, email: str = "", error: GussetError | None = None) -> Page:
    return Page(
        template="signin.html",
        title="Sign in",
        context={"next": local_url(next_url), "form": {"email": email}},
        notice=_error_notice(error),
        status=_status(error),
        retry_after=error.retry_after if isinstance(error, TooManyAttempts) else None,
    )


def _account_page(*, error: GussetError | None = None) -> Page:
    context = {"form": {"error": error_text(error) if error else None}}
    return Page(template="account.html", title="Account", context=context, status=_status(error))


def _error_notice(error: GussetError | None) -> Notice | None:
    return Notice("error", error_text(error)) if error else None


def _status(error: GussetError | None) -> int:
    return outcome_of(error).http if error else 200


def _check_same(password: str, again: str) -> None:
    if password != again:
        raise InvalidValue("the two passwords are not the same")


def _link(text: str) -> SecretValue:
    return SecretValue(text.encode("utf-8", "surrogatepass"))
