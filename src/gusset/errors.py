"""Every error that gusset raises on purpose, in one tree.

    GussetError
    ├── UsageError                  the call itself is wrong
    │   ├── RequestMismatch         an idempotency key that another request had
    │   ├── InvalidName             a name that breaks the rule for names
    │   │   └── CredentialAsName    a credential where a name belongs
    │   └── InvalidValue            a value that is too long, or empty by accident
    ├── ConfigInvalid               config.yaml or the model folder cannot be used
    ├── CheckFailed                 `gusset check` or `gusset scan` found errors
    ├── NotFound                    it does not exist, or this caller may not know of it
    │   └── SecretNotFound          the store has no such secret, or no such version of it
    ├── SecretsMissing              a deployment declares secrets that no source has
    ├── Conflict                    the name is in use, perhaps in another spelling
    │   ├── VersionConflict         the secret has a newer version than the caller expected
    │   ├── ResponseLost            the request was executed before, and its response cannot be given again
    │   └── TokensLeft              tokens or identities that a person made would outlive their account
    ├── NotAcknowledged             a new version is stored, but some replicas may still use an older one
    ├── Denied                      this caller may not do it
    │   └── NotSignedIn             no API key or password, or an invalid one
    │       └── TokenRefused        a JSON Web Token that no access is given for
    │           └── TokenAmbiguous  it stands for several deployments
    ├── Unreachable                 a source or a server did not respond
    │   ├── TooManyAttempts         no more attempts are accepted for a while
    │   ├── DatabaseUnreachable     the database did not respond, or has no free connection
    │   └── OutcomeUnknown          a change was sent and never confirmed
    ├── ModelFailed                 the model's or container's own code failed
    │   └── ImageUnreadable         an image or a layer of it is damaged, or is not one
    ├── ProviderFailed              the program that makes and revokes credentials failed
    ├── RotationUnfinished          a rotation waits for replicas; the same command continues it
    ├── VaultError                  the vault cannot be opened or trusted
    │   ├── RootKeyError            the root key is lost, wrong or unsafe
    │   ├── VaultTooNew             written by a newer gusset
    │   ├── RecordsLost             the database has lost audit records that were committed
    │   └── IntegrityError          stored bytes or records were changed, or others may change them
    ├── HostError                   a failure of the machine: port, disk, engine
    ├── SecretNotText               a model looked up the text of a value that is not UTF-8 (a ValueError)
    └── SecretLookupError           a model looked up a secret that it does not have (a KeyError)
        ├── SecretNotDeclared
        └── SecretNotSet

An error has a stable `code`, a message (what failed, on what) and a hint (what
to do next). `OUTCOMES` maps each class to an exit status and an HTTP status. No
message, hint or `repr` may contain a secret's value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar


class GussetError(Exception):
    """The base class of all expected errors.

    They are shown to people as `message` and `hint`, without a traceback.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(GussetError):
    """The command or call is wrong."""

    code = "usage"


class InvalidName(UsageError):
    """A name that breaks the rule for names; see `gusset.secrets.name`."""

    code = "invalid_name"


class RequestMismatch(UsageError):
    """An idempotency key that was used for another request."""

    code = "idempotency_mismatch"


class CredentialAsName(InvalidName):
    """A credential was given as a name. It is neither shown nor recorded."""

    code = "credential_as_name"


class InvalidValue(UsageError):
    """A value that cannot be stored, or that is certainly a mistake."""

    code = "invalid_value"


@dataclass(frozen=True, slots=True)
class Problem:
    """An error or a warning about a model folder, with its location.

    `line` and `column` count from 1; they are None for a problem that has no
    location in a file. `key` is the path of the key, as in `resources.cpu`.
    """

    message: str
    hint: str | None = None
    _: KW_ONLY
    file: str | None = None
    line: int | None = None
    column: int | None = None
    key: str | None = None
    code: str = "invalid"
    warning: bool = False

    def location(self) -> str:
        """`config.yaml:3:8`, or the known parts of it."""
        parts = [self.file, self.line, self.column]
        return ":".join(str(part) for part in parts if part is not None)


class ConfigInvalid(GussetError):
    """The model folder cannot be used; `problems` are all errors and warnings."""

    code = "config_invalid"

    def __init__(self, message: str, *, problems: Sequence[Problem] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class CheckFailed(GussetError):
    """`gusset check` or `gusset scan` found errors; `problems` are all errors and warnings."""

    code = "check_failed"

    def __init__(self, message: str, *, problems: Sequence[Problem] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class NotFound(GussetError):
    """It does not exist, or this caller may not know of it."""

    code = "not_found"


class SecretNotFound(NotFound):
    """The secret does not exist or is deleted, or it has no such version."""

    code = "secret_not_found"


class SecretsMissing(GussetError):
    """Declared secrets that no source has; `names` are all of them."""

    code = "secrets_missing"

    def __init__(self, message: str, *, names: Sequence[str], hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.names = tuple(names)


class Conflict(GussetError):
    """The name is in use, perhaps in another spelling, or the action would break something in use."""

    code = "conflict"


class VersionConflict(Conflict):
    """The secret's current version is not the one that the caller expected."""

    code = "version_conflict"


class ResponseLost(Conflict):
    """The request was executed before, and its response cannot be given again, or not yet."""

    code = "response_lost"


class TokensLeft(Conflict):
    """A person whose account is to be disabled made tokens or identities.

    `tokens` has the prefix and deployment of each, `identities` the name, team and deployment.
    """

    code = "tokens_left"

    def __init__(
        self,
        message: str,
        *,
        tokens: Sequence[tuple[str, str]],
        identities: Sequence[tuple[str, str, str]],
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.tokens = tuple(tokens)
        self.identities = tuple(identities)


class NotAcknowledged(GussetError):
    """A new version is stored, but some replicas may still use an older one; `replicas` lists them."""

    code = "not_acknowledged"

    def __init__(
        self, message: str, *, replicas: Sequence[Mapping[str, object]] = (), hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.replicas = tuple(replicas)


class Denied(GussetError):
    """The caller may not do this, or a source refuses the read."""

    code = "denied"


class NotSignedIn(Denied):
    """The request has no API key or password, or an invalid one.

    `ended`: the key was valid once, so this is no attempt to guess one.
    """

    code = "not_signed_in"

    def __init__(self, message: str, *, hint: str | None = None, ended: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.ended = ended


class TokenRefused(NotSignedIn):
    """A JSON Web Token is not valid, or stands for no deployment.

    `wrong_target`: it stands for deployments, but not for the one that was requested.
    """

    code = "token_refused"

    def __init__(self, message: str, *, hint: str | None = None, wrong_target: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.wrong_target = wrong_target


class TokenAmbiguous(TokenRefused):
    """A JSON Web Token stands for several deployments, and the request names none of them."""

    code = "token_ambiguous"


class Unreachable(GussetError):
    """A source or server did not respond. This never means that something is missing.

    `retry_after`: for how many seconds it wants no further request; None if it did not say.
    """

    code = "unreachable"

    def __init__(self, message: str, *, hint: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class TooManyAttempts(Unreachable):
    """No more attempts are accepted for a while."""

    code = "too_many_attempts"

    def __init__(self, message: str, *, hint: str | None = None, retry_after: float | None = 60.0) -> None:
        super().__init__(message, hint=hint, retry_after=retry_after)


class DatabaseUnreachable(Unreachable):
    """The vault's database cannot be used at the moment. Its hint may name hosts and addresses.

    A manager shows the hint to nobody: strangers can ask whether it is ready.
    """


class OutcomeUnknown(Unreachable):
    """A change was sent and never confirmed: it may or may not have been made."""

    code = "outcome_unknown"


class ModelFailed(GussetError):
    """The model's own code, or its container, failed."""

    code = "model_failed"


class ImageUnreadable(ModelFailed):
    """An image, or a layer of it, is damaged, incomplete, or no image at all."""

    code = "image_unreadable"


class ProviderFailed(GussetError):
    """The program that makes and revokes credentials failed, or broke its contract."""

    code = "provider_failed"


class RotationUnfinished(GussetError):
    """A rotation waits for replicas, so the previous credential is not revoked yet."""

    code = "rotation_unfinished"


class VaultError(GussetError):
    """The vault cannot be opened, read or trusted."""

    code = "vault"


class NoVault(VaultError):
    """There is no vault in the database."""

    code = "no_vault"


class RootKeyError(VaultError):
    """The root key is lost, belongs to another vault, or is readable by others."""

    code = "root_key"


class VaultTooNew(VaultError):
    """The vault was written by a newer gusset, and this one would damage it."""

    code = "vault_too_new"


class IntegrityError(VaultError):
    """A value cannot be opened, the audit chain is broken, or others may write to the vault's files."""

    code = "integrity"


class RecordsLost(VaultError):
    """The database has lost audit records that were committed: nothing is written until that is accepted."""

    code = "records_lost"


class HostError(GussetError):
    """A failure of the machine: a port in use, a full disk, no engine."""

    code = "host"


class SecretLookupError(GussetError, KeyError):
    """A model looked up a secret that it does not have.

    A `KeyError`, so that code written for a plain mapping works unchanged.
    """

    code = "secret_lookup"


class SecretNotDeclared(SecretLookupError):
    """The name is not under `secrets:` in the model's config.yaml."""

    code = "secret_not_declared"


class SecretNotSet(SecretLookupError):
    """The name is declared, but no source had a value for it."""

    code = "secret_not_set"


class SecretNotText(GussetError, ValueError):
    """A model looked up the text of a secret whose value is not UTF-8.

    Not a `KeyError`: the secret exists, and `.get` with a default must not hide it.
    """

    code = "secret_not_text"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The exit status of the process and the HTTP status for a class of errors."""

    exit: int
    http: int


BUG = Outcome(exit=1, http=500)

OUTCOMES: dict[type[GussetError], Outcome] = {
    UsageError: Outcome(exit=2, http=400),
    RequestMismatch: Outcome(exit=2, http=422),
    ConfigInvalid: Outcome(exit=3, http=400),
    CheckFailed: Outcome(exit=4, http=400),
    NotFound: Outcome(exit=5, http=404),
    SecretsMissing: Outcome(exit=5, http=404),
    Conflict: Outcome(exit=6, http=409),
    VersionConflict: Outcome(exit=6, http=412),
    Denied: Outcome(exit=7, http=403),
    NotSignedIn: Outcome(exit=7, http=401),
    TokenRefused: Outcome(exit=7, http=400),
    Unreachable: Outcome(exit=8, http=503),
    TooManyAttempts: Outcome(exit=8, http=429),
    ModelFailed: Outcome(exit=9, http=500),
    ProviderFailed: Outcome(exit=9, http=500),
    RotationUnfinished: Outcome(exit=12, http=409),
    SecretLookupError: Outcome(exit=9, http=500),
    SecretNotText: Outcome(exit=9, http=500),
    VaultError: Outcome(exit=10, http=500),
    RecordsLost: Outcome(exit=10, http=503),
    VaultTooNew: Outcome(exit=10, http=503),
    HostError: Outcome(exit=11, http=503),
    NotAcknowledged: Outcome(exit=12, http=409),
}


def outcome_of(error: BaseException) -> Outcome:
    """The outcome of the nearest base class in `OUTCOMES`. Other exceptions are bugs in gusset."""
    for cls in type(error).__mro__:
        if cls in OUTCOMES:
            return OUTCOMES[cls]
    return BUG
