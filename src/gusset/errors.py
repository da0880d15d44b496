"""Every error that gusset raises on purpose, in one tree.

    GussetError
    ├── UsageError                  the call itself is wrong
    │   ├── InvalidName             a name that breaks the rule for names
    │   │   └── CredentialAsName    a credential where a name belongs
    │   └── InvalidValue            a value that is too long, or empty by accident
    ├── ConfigInvalid               config.yaml or the model folder cannot be used
    ├── CheckFailed                 `gusset check` found something
    ├── NotFound                    there is no such thing, for this caller
    │   └── SecretNotFound          the store has no such secret, or no such version
    ├── SecretsMissing              a deployment declares secrets that no source has
    ├── Conflict                    the name is taken, or spelled otherwise
    │   └── VersionConflict         somebody else was first: the version has moved on
    ├── Denied                      it exists, perhaps, but not for this caller
    │   └── NotSignedIn             no key, or not a good one
    ├── Unreachable                 the source did not answer: nothing is known
    │   └── TooManyAttempts         it will not answer for a while
    ├── ModelFailed                 the model's or container's own code failed
    ├── VaultError                  the vault cannot be opened or trusted
    │   ├── RootKeyError            the root key is lost, wrong or unsafe
    │   ├── VaultTooNew             written by a newer gusset
    │   └── IntegrityError          stored bytes or records are not what was written, or others may write them
    ├── HostError                   the machine refused: port, disk, engine
    ├── SecretNotText               a model asked for the text of a value that is not UTF-8 (a ValueError)
    └── SecretLookupError           a model asked for a secret that it does not have (a KeyError)
        ├── SecretNotDeclared
        └── SecretNotSet

An error carries a stable `code`, a message (what failed, on what) and a hint
(what to do next). `OUTCOMES` gives each class its exit status and its HTTP
status. No message, hint or `repr` here may hold a secret's value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class GussetError(Exception):
    """Something that went wrong in a way that gusset foresaw.

    Page to people as `message`, then `hint`, without a traceback.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(GussetError):
    """The command or call was put together wrongly."""

    code = "usage"


class InvalidName(UsageError):
    """A name that breaks the rule for names; see `gusset.secrets.name`."""

    code = "invalid_name"


class CredentialAsName(InvalidName):
    """What stands as a name is surely a credential. Neither shown nor recorded."""

    code = "credential_as_name"


class InvalidValue(UsageError):
    """A value that cannot be stored, or that is surely not what was meant."""

    code = "invalid_value"


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a model folder: where it is, what it is, what would be right.

    `line` and `column` count from 1; both are None where a fault has no place
    in a file. `key` is the path of the key, as in `resources.cpu`.
    """

    message: str
    hint: str | None = None
    file: str | None = None
    line: int | None = None
    column: int | None = None
    key: str | None = None
    code: str = "invalid"
    warning: bool = False

    def place(self) -> str:
        """`config.yaml:3:8`, or as much of it as is known."""
        parts = [self.file, self.line, self.column]
        return ":".join(str(part) for part in parts if part is not None)


class ConfigInvalid(GussetError):
    """The model folder cannot be used; `problems` holds everything wrong with it."""

    code = "config_invalid"

    def __init__(self, message: str, *, problems: Sequence[Problem] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class CheckFailed(GussetError):
    """`gusset check` has findings; they have been printed."""

    code = "check_failed"

    def __init__(self, message: str, *, problems: Sequence[Problem] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class NotFound(GussetError):
    """There is no such thing, or none that this caller may know of."""

    code = "not_found"


class SecretNotFound(NotFound):
    """The store has no live secret of that name, or no such version of it."""

    code = "secret_not_found"


class SecretsMissing(GussetError):
    """Declared secrets that no source has; `names` lists them all."""

    code = "secrets_missing"

    def __init__(self, message: str, *, names: Sequence[str], hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.names = tuple(names)


class Conflict(GussetError):
    """The name is taken or is spelled otherwise, or the act would break something that is in use."""

    code = "conflict"


class VersionConflict(Conflict):
    """The secret is not at the version that the caller has seen."""

    code = "version_conflict"


class Denied(GussetError):
    """The caller may not do this, or a source refuses to be read."""

    code = "denied"


class NotSignedIn(Denied):
    """No key or password came, or not a good one."""

    code = "not_signed_in"


class Unreachable(GussetError):
    """A source or server did not answer. Never to be taken for "missing"."""

    code = "unreachable"


class TooManyAttempts(Unreachable):
    """So many attempts failed that no more are taken for a while."""

    code = "too_many_attempts"


class ModelFailed(GussetError):
    """The model's own code, or its container, failed."""

    code = "model_failed"


class VaultError(GussetError):
    """The vault cannot be opened, read or trusted."""

    code = "vault"


class RootKeyError(VaultError):
    """The root key is lost, is another vault's, or is readable by others."""

    code = "root_key"


class VaultTooNew(VaultError):
    """The vault was written by a newer gusset; this one would damage it."""

    code = "vault_too_new"


class IntegrityError(VaultError):
    """Sealed bytes do not open, the audit chain does not hold, or others may write to the vault's files."""

    code = "integrity"


class HostError(GussetError):
    """The machine refused: a port in use, a full disk, no engine."""

    code = "host"


class SecretLookupError(GussetError, KeyError):
    """A model asked for a secret that it does not have.

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
    """A model asked for the text of a secret whose value is not UTF-8.

    Not a `KeyError`: the secret is there, and `.get` with a default must not hide it.
    """

    code = "secret_not_text"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a class of errors looks from outside: a process's exit status, an HTTP status."""

    exit: int
    http: int


BUG = Outcome(exit=1, http=500)

OUTCOMES: dict[type[GussetError], Outcome] = {
    UsageError: Outcome(exit=2, http=400),
    ConfigInvalid: Outcome(exit=3, http=400),
    CheckFailed: Outcome(exit=4, http=400),
    NotFound: Outcome(exit=5, http=404),
    SecretsMissing: Outcome(exit=5, http=404),
    Conflict: Outcome(exit=6, http=409),
    VersionConflict: Outcome(exit=6, http=412),
    Denied: Outcome(exit=7, http=403),
    NotSignedIn: Outcome(exit=7, http=401),
    Unreachable: Outcome(exit=8, http=503),
    TooManyAttempts: Outcome(exit=8, http=429),
    ModelFailed: Outcome(exit=9, http=500),
    SecretLookupError: Outcome(exit=9, http=500),
    SecretNotText: Outcome(exit=9, http=500),
    VaultError: Outcome(exit=10, http=500),
    HostError: Outcome(exit=11, http=503),
}


def outcome_of(error: BaseException) -> Outcome:
    """The outcome of the nearest class in `OUTCOMES`; anything else is a bug in gusset."""
    for cls in type(error).__mro__:
        if cls in OUTCOMES:
            return OUTCOMES[cls]
    return BUG
