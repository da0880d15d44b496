"""Recognizes credentials by the prefixes and shapes that their issuers document.

The table is short and exact, so false positives are rare. It is used to find
credentials where they do not belong, and values that start like a credential but
are incomplete. Nothing here returns the text of a credential.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class TokenShape:
    """A kind of token: its name in messages, its prefix, and a regular expression for the rest."""

    kind: str
    prefix: str
    rest: str

    def fits(self, text: str) -> bool:
        """Whether `text`, which has the prefix, is a whole token of this kind."""
        return re.fullmatch(self.rest, text[len(self.prefix) :]) is not None


TOKEN_SHAPES = (
    TokenShape("a Hugging Face token", "hf_", r"[A-Za-z0-9]{30,64}"),
    TokenShape("a Hugging Face organisation token", "api_org_", r"[A-Za-z0-9]{30,64}"),
    TokenShape("an Anthropic key", "sk-ant-", r"[A-Za-z0-9_-]{32,200}"),
    TokenShape("an OpenRouter key", "sk-or-v1-", r"[0-9a-f]{64}"),
    TokenShape("an OpenAI project key", "sk-proj-", r"[A-Za-z0-9_-]{32,250}"),
    TokenShape("an OpenAI service key", "sk-svcacct-", r"[A-Za-z0-9_-]{32,250}"),
    TokenShape("an API key", "sk-", r"[A-Za-z0-9]{20,200}"),
    TokenShape("a Stripe secret key", "sk_live_", r"[A-Za-z0-9]{16,247}"),
    TokenShape("a Stripe restricted key", "rk_live_", r"[A-Za-z0-9]{16,247}"),
    TokenShape("an AWS access key id", "AKIA", r"[A-Z2-7]{16}"),
    TokenShape("a temporary AWS access key id", "ASIA", r"[A-Z2-7]{16}"),
    TokenShape("a GitHub token", "ghp_", r"[A-Za-z0-9]{36,251}"),
    TokenShape("a GitHub OAuth token", "gho_", r"[A-Za-z0-9]{36,251}"),
    TokenShape("a GitHub user token", "ghu_", r"[A-Za-z0-9]{36,251}"),
    TokenShape("a GitHub installation token", "ghs_", r"[A-Za-z0-9._-]{36,2048}"),
    TokenShape("a GitHub refresh token", "ghr_", r"[A-Za-z0-9]{36,251}"),
    TokenShape("a GitHub fine-grained token", "github_pat_", r"[A-Za-z0-9]{22}_[A-Za-z0-9]{59}"),
    TokenShape("a GitLab token", "glpat-", r"[A-Za-z0-9_.-]{20,300}"),
    TokenShape("a Slack bot token", "xoxb-", r"[0-9]{8,14}-[A-Za-z0-9-]{18,80}"),
    TokenShape("a Slack user token", "xoxp-", r"[0-9]{8,14}-[A-Za-z0-9-]{18,120}"),
    TokenShape("a Google API key", "AIza", r"[A-Za-z0-9_-]{35}"),
    TokenShape("a Google OAuth token", "ya29.", r"[A-Za-z0-9_-]{20,2048}"),
    TokenShape("a PyPI token", "pypi-", r"[A-Za-z0-9_-]{50,1000}"),
    TokenShape("an npm token", "npm_", r"[A-Za-z0-9]{36}"),
    TokenShape("a Replicate token", "r8_", r"[A-Za-z0-9]{37}"),
    TokenShape("a Groq key", "gsk_", r"[A-Za-z0-9]{48,64}"),
    TokenShape("an NVIDIA key", "nvapi-", r"[A-Za-z0-9_-]{60,80}"),
    TokenShape("a DigitalOcean token", "dop_v1_", r"[0-9a-f]{64}"),
    TokenShape("a gusset API key", "gusset_key_", r"[a-z2-7]{8}_[A-Za-z0-9_-]{43}"),
    TokenShape("a gusset deployment token", "gusset_tok_", r"[a-z2-7]{8}_[A-Za-z0-9_-]{43}"),
    TokenShape("a SendGrid key", "SG.", r"[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,64}"),
)
"""Of several prefixes that match, the longest comes first."""

_OTHER = (
    ("a JWT", r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
    ("a private key", r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    ("a URL with a password", r"[a-z][a-z0-9+.-]{1,20}://[^\s:/@$<{*]{1,100}:[^\s/@$<{*]{3,200}@"),
)


@dataclass(frozen=True, slots=True)
class Match:
    """A credential found in a text: its kind and its position, but never its text."""

    kind: str
    start: int
    end: int


def find_credentials(text: str) -> list[Match]:
    """The credentials in `text` that have the shape which their issuer documents."""
    pattern, kinds = _scanner()
    return [Match(kinds[hit.lastgroup or ""], *hit.span()) for hit in pattern.finditer(text)]


def looks_like_credential(text: str) -> str | None:
    """The kind of credential that `text` contains, as in "a Hugging Face token"; None for no credential.

    Besides the documented shapes, one long random word counts as a key. Use it
    only where no such text belongs.
    """
    if matches := find_credentials(text):
        return matches[0].kind
    return "a key (a long random text)" if is_random(text.strip()) else None


def credential_as_name(text: str) -> str | None:
    """The kind of credential that was given as a secret's name; None when `text` may be a name.

    Less eager than `looks_like_credential`, since names may be long and contain
    digits: words and numbers, as in `sk-ant-key-of-the-research-team-2`, are a name.
    """
    if len(text) < _SHORTEST:
        return None
    if _WORDS.fullmatch(text):
        return None
    if matches := find_credentials(text):
        return matches[0].kind
    unbroken = _UNBROKEN.fullmatch(text) is not None and len(re.findall("[0-9]+", text)) >= _NUMBERS
    if _HEX.fullmatch(text) or unbroken:
        return "a key (a long random text)" if is_random(text) else None
    return None


_SHORTEST = 20  # all documented shapes that could be names are at least this long
_WORDS = re.compile(r"[a-z]{0,16}[0-9]{0,4}(?:[._-][a-z]{0,16}[0-9]{0,4})*")
_UNBROKEN = re.compile(r"[A-Za-z0-9]{24,}")
_NUMBERS = 4  # a word that a person chose does not contain this many separate numbers


def misshapen_token(text: str) -> TokenShape | None:
    """The kind of token whose prefix `text` has without the rest of its shape; None for other texts."""
    shapes = _with_prefix_of(text)
    return shapes[0] if shapes and not shapes[0].fits(text) else None


def token_shape(text: str) -> TokenShape | None:
    """The kind of token that the whole of `text` is; None for other texts."""
    return next((token for token in _with_prefix_of(text) if token.fits(text)), None)


def _with_prefix_of(text: str) -> list[TokenShape]:
    """The kinds of token whose prefix `text` has, the longest prefix first."""
    return [token for token in _BY_START.get(text[:2], ()) if text.startswith(token.prefix)]


_BY_START = {
    start: [token for token in TOKEN_SHAPES if token.prefix.startswith(start)]
    for start in {token.prefix[:2] for token in TOKEN_SHAPES}
}  # by the first two letters of the prefix: nearly every text has none of them


_WORD = re.compile(r"[A-Za-z0-9+/=_.~-]{20,}")
_HEX = re.compile(r"[0-9a-fA-F]{32,}")
_BITS_PER_CHARACTER = 3.7  # English words joined by dashes have fewer


def is_random(text: str) -> bool:
    """Whether `text` is one long random word: hex digits, or letters and digits of high entropy."""
    if _HEX.fullmatch(text):
        return len(set(text)) > 6
    if not _WORD.fullmatch(text) or not re.search("[0-9]", text) or not re.search("[A-Za-z]", text):
        return False
    return _entropy(text) >= _BITS_PER_CHARACTER


def has_random_word(text: str) -> bool:
    """Whether a word in `text` looks random, and is no path, version or name of words and numbers.

    Finds keys with a documented shape, and others. Digests and commit hashes look
    random, too, so use this only for warnings.
    """
    return any(
        is_random(word) and any(_MIXED.fullmatch(piece) for piece in _PIECE.findall(word))
        for word in _WORD.findall(text)
    )


_PIECE = re.compile(r"[A-Za-z0-9]{10,}")
_MIXED = re.compile(r"[0-9]*[A-Za-z]+[0-9][A-Za-z0-9]*|[0-9]+[A-Za-z][A-Za-z0-9]*")


def _entropy(text: str) -> float:
    """The Shannon entropy in bits per character."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


@cache
def _scanner() -> tuple[re.Pattern[str], dict[str, str]]:
    shapes = [(token.kind, re.escape(token.prefix) + token.rest) for token in TOKEN_SHAPES]
    parts, kinds = [], {}
    for number, (kind, pattern) in enumerate([*shapes, *_OTHER]):
        kinds[f"k{number}"] = kind
        parts.append(f"(?P<k{number}>{pattern})")
    return re.compile(r"(?<![A-Za-z0-9_])(?:" + "|".join(parts) + ")"), kinds
