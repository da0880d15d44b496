"""The rule for secrets' names, and which spellings are the same secret.

The rule is the one of the hosted secrets API that Truss uses. It applies in
config.yaml, on the command line, over HTTP and to files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gusset.errors import CredentialAsName, InvalidName
from gusset.secrets.credentials import credential_as_name

MAX_LENGTH = 253

_ALLOWED = re.compile(r"[A-Za-z0-9._-]{1,253}")


def check_name(name: object) -> str:
    """Return `name` if it is valid as a secret's name; raise `InvalidName` if not.

    A valid name is safe as the name of a file: `.`, anything that starts with
    `..`, and `/` are refused. The message does not repeat an invalid name, which
    may be a value by mistake. A name that is a credential raises
    `CredentialAsName`.
    """
    if not isinstance(name, str):
        raise InvalidName(f"a secret's name must be a string, not {type(name).__name__}")
    if not name:
        raise InvalidName("a secret's name cannot be empty", hint=_RULE)
    if credential_as_name(name):
        raise CredentialAsName("that looks like a credential, not a name", hint=_EXPOSED)
    if len(name) > MAX_LENGTH:
        raise InvalidName(
            f"a secret's name has at most {MAX_LENGTH} characters; this one has {len(name)}", hint=_RULE
        )
    if not _ALLOWED.fullmatch(name):
        wrong = sorted({_describe(c) for c in name if not _ALLOWED.fullmatch(c)})
        raise InvalidName(f"a secret's name cannot contain {', '.join(wrong)}", hint=_RULE)
    if name == "." or name.startswith(".."):
        raise InvalidName("a secret's name cannot be '.' or start with '..'", hint=_RULE)
    return name


_RULE = "use 1 to 253 of: letters A-Z a-z, digits, '-', '_' and '.', as in hf_access_token"


_EXPOSED = (
    "it is not repeated here, but it is now in the shell's history or in a file.\n"
    "Remove it there (in bash: `history -d`), have its issuer replace it, and give values at the\n"
    "prompt, on standard input (`gusset secret set NAME < file`) or with --from-file"
)


def _describe(character: str) -> str:
    if character == " ":
        return "a space"
    if character.isascii() and character.isprintable():
        return repr(character)
    return f"U+{ord(character):04X}"


def fold_name(name: str) -> str:
    """The same text for all spellings of one secret: each `-` and `.` becomes `_`."""
    return name.replace("-", "_").replace(".", "_")


def is_deployment_name(name: str) -> bool:
    """Whether a manager registers a deployment under this name."""
    return 1 <= len(name) <= 253 and name.isprintable() and "/" not in name and name not in (".", "..")


def spelling_clashes(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of different spellings of one secret, in the order of `names`."""
    first: dict[str, str] = {}
    clashes = []
    for name in names:
        other = first.setdefault(fold_name(name), name)
        if other != name:
            clashes.append((other, name))
    return clashes
