"""The rule for secrets' names, and how spellings of one name fold together.

The rule is that of the hosted secrets API whose clients people have; it holds in
config.yaml, on the command line, over HTTP and for files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gusset.errors import CredentialAsName, InvalidName
from gusset.secrets.credentials import credential_as_name

MAX_LENGTH = 253

_ALLOWED = re.compile(r"[A-Za-z0-9._-]{1,253}")
_FOLD = str.maketrans("-.", "__")


def check_name(name: str) -> str:
    """Return `name` when it is a secret's name; raise `InvalidName` when not.

    A name never leaves its folder: `.`, `..` and anything that starts with
    `..` are refused, and `/` is not among the characters allowed. The message
    never shows a wrong name, since what stands where a name should be is now
    and then a value; what is surely a credential is a `CredentialAsName`.
    """
    if not isinstance(name, str):
        raise InvalidName(f"a secret's name is a text, not {type(name).__name__}")
    if not name:
        raise InvalidName("a secret's name cannot be empty", hint=_RULE)
    if credential_as_name(name):
        raise CredentialAsName("that looks like a credential, not a name", hint=_TYPED)
    if len(name) > MAX_LENGTH:
        raise InvalidName(
            f"a secret's name has at most {MAX_LENGTH} characters, this one {len(name)}", hint=_RULE
        )
    if not _ALLOWED.fullmatch(name):
        wrong = sorted({_describe(c) for c in name if not _ALLOWED.fullmatch(c)})
        raise InvalidName(f"a secret's name cannot contain {', '.join(wrong)}", hint=_RULE)
    if name == "." or name.startswith(".."):
        raise InvalidName("a secret's name cannot be '.' or start with '..'", hint=_RULE)
    return name


_RULE = "use 1 to 253 of: letters A-Z a-z, digits, '-', '_' and '.', as in hf_access_token"


_TYPED = (
    "it is not repeated here, but where it was typed has it now: the shell's history, or a file.\n"
    "Remove it there (for bash: `history -d`), replace it by a new one where it was issued, and give values\n"
    "by the prompt, by standard input (`gusset secret set NAME < file`) or by --from-file"
)


def _describe(character: str) -> str:
    if character == " ":
        return "a space"
    if character.isascii() and character.isprintable():
        return repr(character)
    return f"U+{ord(character):04X}"


def fold_name(name: str) -> str:
    """The form under which spellings are one secret: `-`, `_` and `.` become `_`, one for one."""
    return name.translate(_FOLD)


def spelling_clashes(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of different spellings of one secret, in the order given."""
    first: dict[str, str] = {}
    clashes = []
    for name in names:
        known = first.setdefault(fold_name(name), name)
        if known != name:
            clashes.append((known, name))
    return clashes
