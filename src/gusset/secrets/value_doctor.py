"""Warnings about a value that is about to be stored: common mistakes such as a newline at its end.

The value is never changed: it may be unusual on purpose. No message or hint
contains any part of it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from gusset.secrets.credentials import misshapen_token, token_shape
from gusset.secrets.name import fold_name
from gusset.secrets.value import MIN_MASKED


@dataclass(frozen=True, slots=True)
class Finding:
    """A possible mistake: a stable `code`, what it is, and what to do about it."""

    code: str
    message: str
    hint: str


def examine(value: bytes, *, name: str | None = None, now: datetime) -> list[Finding]:
    """The possible mistakes in `value`.

    `name` is the secret's name, if it is known. `now`, with a time zone, is
    compared with the expiry time of a JWT.
    """
    text = value.decode("utf-8", "replace").removeprefix("\ufeff")
    bare = text.strip()
    findings = [
        *(() if _WORD.fullmatch(value) else _findings_of_other_text(value, text, bare, now)),
        _placeholder(bare),
        _token(bare, name or ""),
        _encoded_token(bare),
        _short(value),
    ]
    return [each for each in findings if each is not None]


_WORD = re.compile(rb"[A-Za-z0-9_-]+")


def _findings_of_other_text(value: bytes, text: str, bare: str, now: datetime) -> Iterator[Finding | None]:
    """Findings that a `_WORD` (as most credentials are) cannot have. These checks take most of the time."""
    yield _encoding(value)
    yield from _edges(text)
    yield from _characters(text)
    yield None if _placeholder(bare) else _reference(bare)
    yield _pasted(bare)
    yield from _pem_and_json(bare)
    yield _jwt(bare, now)


def _encoding(value: bytes) -> Finding | None:
    if value.startswith(b"\xef\xbb\xbf"):
        return Finding(
            "bom",
            "the value starts with a byte order mark",
            "save the file as UTF-8 without BOM and set it again",
        )
    if value.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Finding(
            "utf16",
            "the value looks like UTF-16 text",
            "save the file as UTF-8 (PowerShell: -Encoding utf8NoBOM)",
        )
    return None


_SMART_QUOTES = re.compile("[\u2018-\u201f\u2032\u2033\u00ab\u00bb]")
_INVISIBLE = re.compile("[\u00a0\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_ENDS_IN_NEWLINE = ("-----BEGIN", "{", "[")  # as PEM and JSON files do; their readers accept it
_WRAPPED = re.compile(r"""(['"`]).*\1""", re.DOTALL)


def _edges(text: str) -> Iterator[Finding]:
    bare = text.strip()
    if text != text.rstrip() and bare and not bare.startswith(_ENDS_IN_NEWLINE):
        yield Finding(
            "trailing_whitespace",
            "the value ends in white space" + (" (a newline)" if text.endswith("\n") else ""),
            "set it again without it, unless it is part of the value",
        )
    if text != text.lstrip() and bare:
        yield Finding(
            "leading_whitespace",
            "the value starts with white space",
            "set it again without it, unless it is part of the value",
        )
    if len(bare) > 1 and _WRAPPED.fullmatch(bare):
        yield Finding(
            "quotes", "the value is in quotes, which are stored with it", "set it again without the quotes"
        )


def _characters(text: str) -> Iterator[Finding]:
    if text.isascii() and text.isprintable():
        return
    bare = text.strip()
    if _SMART_QUOTES.search(text):
        yield Finding(
            "smart_quotes",
            "the value contains typographic quotes",
            "copy it from where it was issued, not from a document",
        )
    if _INVISIBLE.search(text):
        yield Finding(
            "invisible_character",
            "the value contains an invisible character or a non-breaking space",
            "copy it from where it was issued, not from a page or a chat",
        )
    lines = bare.replace("\r\n", "\n") if bare.startswith(_ENDS_IN_NEWLINE) else bare
    if _CONTROL.search(lines) and "\ufffd" not in text:  # binary data may contain any byte
        yield Finding(
            "control_character",
            "the value contains a control character, such as a carriage return or a terminal's escape code",
            "copy it again as plain text with Unix line ends, or set it from the file, with --from-file",
        )


_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


_PLACEHOLDERS = re.compile(
    r"null|none|nil|undefined|nan|true|false|todo|tbd|fixme|(change|replace)[-_ ]?me|placeholder|example"
    r"|secret|passw(or)?d|token|api[-_]?key|value|dummy|test|foo|bar|empty|redacted",
    re.IGNORECASE,
)
_TEMPLATE = re.compile(
    r"<[^<>]*>|\$?\{\{.*\}\}|x{3,}|\*+|\.{3,}"
    r"|(enter|your|insert|paste|put|add)[ _-].*(key|token|secret|password|here|value)",
    re.IGNORECASE | re.DOTALL,
)
_REFERENCE = re.compile(r"\$[A-Za-z_][A-Za-z0-9_]*|\$\(.*\)|%[A-Za-z_][A-Za-z0-9_]*%|`[^`]+`", re.DOTALL)
_EMBEDDED_REFERENCE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*(?:[:?+-][^{}]*)?\}")
_OTHER_MANAGERS = re.compile(
    r"(?:op|bw|keeper|infisical|doppler|ref\+[a-z]+|vault|secretref|akv|awssm|gcpsm)://?\S+|vault:\S+#\S+"
    r"|arn:aws[a-z-]*:(?:secretsmanager|ssm):\S+|projects/[^/\s]+/secrets/\S+"
    r"|https://[^/\s]+\.vault\.azure\.net/secrets/\S+",
    re.IGNORECASE,
)


def _placeholder(text: str) -> Finding | None:
    if not text:
        return Finding("blank", "the value is empty or only white space", "set it again if this is a mistake")
    if _is_placeholder(text.strip("'\"")):
        return Finding(
            "placeholder",
            "the value looks like a placeholder, not a credential",
            "set the real value instead",
        )
    return None


def _reference(text: str) -> Finding | None:
    if _REFERENCE.fullmatch(text) or _EMBEDDED_REFERENCE.search(text):
        return Finding(
            "reference",
            "the value looks like a reference to a variable that was not expanded",
            "gusset expands nothing: give the value itself, or let the shell expand it within double quotes",
        )
    if _OTHER_MANAGERS.fullmatch(text):
        return Finding(
            "other_manager",
            "the value looks like a reference to another secret manager, which gusset does not follow",
            "read the secret there and set its value here",
        )
    return None


def _is_placeholder(text: str) -> bool:
    return len(text) < 200 and bool(_PLACEHOLDERS.fullmatch(text) or _TEMPLATE.fullmatch(text))


_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Z][A-Z0-9_]*)\s*[=:]\s*\S+")
_ASSIGNED = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS")
_HEADER = re.compile(
    r"(Authorization\s*:\s*)?(Bearer|Basic|Api-Key)\s+\S+|Authorization\s*:.*", re.IGNORECASE
)


def _pasted(text: str) -> Finding | None:
    assignment = _ASSIGNMENT.fullmatch(text)
    if assignment and _ASSIGNED.search(assignment[1]):
        return Finding(
            "assignment", "the value looks like a whole line NAME=value", "set only the part after the ="
        )
    if _HEADER.fullmatch(text):
        return Finding(
            "header",
            "the value looks like a whole HTTP header",
            "set only the credential; clients add the rest of the header",
        )
    return None


_ISSUERS = {
    "anthropic": "Anthropic",
    "aws": "AWS",
    "gh": "GitHub",
    "github": "GitHub",
    "gitlab": "GitLab",
    "google": "Google",
    "groq": "Groq",
    "hf": "Hugging Face",
    "huggingface": "Hugging Face",
    "npm": "npm",
    "nvidia": "NVIDIA",
    "openai": "OpenAI",
    "openrouter": "OpenRouter",
    "pypi": "PyPI",
    "replicate": "Replicate",
    "sendgrid": "SendGrid",
    "slack": "Slack",
    "stripe": "Stripe",
}  # words in secrets' names, and the issuer that `TokenShape.kind` names
_ANY_ISSUER = "an API key"


def _token(text: str, name: str) -> Finding | None:
    if wrong := misshapen_token(text):
        return Finding(
            "token_shape",
            f"the value starts like {wrong.kind}, but is not a complete one",
            "copy the whole token and nothing else",
        )
    shape = token_shape(text)
    kind = shape.kind if shape else _ANY_ISSUER
    expected = {_ISSUERS[word] for word in fold_name(name).lower().split("_") if word in _ISSUERS}
    if expected and kind != _ANY_ISSUER and not any(issuer in kind for issuer in expected):
        return Finding(
            "other_kind",
            f"the value looks like {kind}, but the name suggests {' or '.join(sorted(expected))}",
            "check that the value belongs to this name",
        )
    return None


def _encoded_token(text: str) -> Finding | None:
    """A token in base64, as `kubectl get secret -o yaml` prints it."""
    if len(text) > 4096 or not _BASE64.fullmatch(text) or token_shape(text):
        return None
    try:
        decoded = base64.b64decode(text.replace("\n", ""), validate=True)
    except ValueError:
        return None
    if token := token_shape(decoded.decode("utf-8", "replace").strip()):
        return Finding(
            "encoded_token",
            f"the value looks like {token.kind} encoded in base64",
            "decode it first (base64 -d): models get the bytes as they are stored",
        )
    return None


_BASE64 = re.compile(r"[A-Za-z0-9+/\n]{16,}={0,2}\s*")
_PEM_BEGIN = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----")


def _pem(text: str) -> Iterator[Finding]:
    begin = _PEM_BEGIN.search(text)
    if begin is None:
        if "-----END " in text or "-----BEGIN " in text:
            yield Finding("pem_truncated", "the PEM text has no complete BEGIN line", _WHOLE_FILE)
        return
    end = text.find(f"-----END {begin[1]}-----", begin.end())
    if end < 0:
        yield Finding("pem_truncated", "the PEM text has no END line", _WHOLE_FILE)
        return
    body = text[begin.end() : end]
    if "\n" not in body.strip(" "):
        yield Finding("pem_one_line", "the PEM text has lost its line breaks", _WHOLE_FILE)
    elif not _is_base64(_without_headers(body)):
        yield Finding("pem_damaged", "the PEM text between BEGIN and END is damaged", _WHOLE_FILE)


_WHOLE_FILE = "set it from the file, with --from-file"


def _without_headers(body: str) -> str:
    """The base64 of a PEM body: without `Proc-Type:` lines and the `=` checksum of PGP."""
    lines = [line.strip() for line in body.splitlines()]
    return "".join(line for line in lines if ":" not in line and not line.startswith("="))


def _is_base64(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) > 0
    except ValueError:
        return False


def _pem_and_json(text: str) -> Iterator[Finding]:
    """Check JSON, and PEM texts: the value itself, or strings within JSON, as in a service account's key."""
    if not text.startswith(("{", "[")) or _TEMPLATE.fullmatch(text):
        yield from _pem(text)
        return
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        yield Finding(
            "json",
            f"the value starts like JSON but is not valid, at line {error.lineno} column {error.colno}",
            _WHOLE_FILE,
        )
    except (ValueError, RecursionError):
        yield Finding("json", "the value starts like JSON but is not valid", _WHOLE_FILE)
    else:
        found = {finding.code: finding for part in _strings(data) for finding in _pem(part.strip())}
        yield from found.values()


def _strings(data: object) -> Iterator[str]:
    """All texts in parsed JSON, but for the keys of its maps."""
    parts = [data]
    while parts:
        part = parts.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict | list):
            parts += part.values() if isinstance(part, dict) else part


_JWT = re.compile(r"eyJ[A-Za-z0-9_-]*\.(eyJ[A-Za-z0-9_-]*)\.[A-Za-z0-9_-]*")


def _jwt(text: str, now: datetime) -> Finding | None:
    token = _JWT.fullmatch(text)
    if token is None:
        return None
    expires = _expiry(token[1])
    if expires is not None and expires <= now.timestamp():
        return Finding("jwt_expired", "the value is a JWT that has expired", "get a new one from its issuer")
    return None


def _expiry(payload: str) -> float | None:
    try:
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims["exp"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _short(value: bytes) -> Finding | None:
    if len(value) < MIN_MASKED:
        return Finding(
            "short",
            f"the value has fewer than {MIN_MASKED} bytes and will not be masked in output",
            "use a longer value if you can choose it",
        )
    return None
