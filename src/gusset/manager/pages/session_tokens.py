"""What the pages sign: a session's CSRF token and flash notices, and the cookie of a known browser."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from secrets import token_urlsafe

from itsdangerous import BadData, URLSafeTimedSerializer

from gusset.manager.pages.page_types import Notice

NOTICE_SECONDS = 60
DEVICE_SECONDS = 180 * 86_400
_MAX_NOTICE = 3000  # characters: browsers limit a cookie to 4096 bytes


def csrf_token(session: str) -> str:
    """The token in the session's forms. Without the session it cannot be guessed."""
    return hashlib.sha256(f"csrf:{session}".encode("utf-8", "surrogateescape")).hexdigest()


def sign_notice(notice: Notice, session: str) -> str:
    """A notice as the text of a cookie, valid for a minute and only in this session."""
    signed = _serializer(session).dumps(asdict(notice))
    if len(signed) > _MAX_NOTICE:
        signed = _serializer(session).dumps(asdict(replace(notice, text=notice.text[:300], details=())))
    return signed


def load_notice(signed: str, session: str) -> Notice | None:
    """The notice in a cookie, None if it was not signed for this session or is too old."""
    try:
        data = _serializer(session).loads(signed.encode("utf-8", "surrogateescape"), max_age=NOTICE_SECONDS)
    except BadData:
        return None
    return Notice(**{**data, "details": tuple(data["details"])})


def sign_device(account: str, key: bytes) -> str:
    """The text of a cookie by which a browser is known to an account, after a successful sign-in.

    It signs nobody in. Failed passwords that come with it are counted for themselves, so that
    others' failures do not lock the account's owner out (OWASP calls this a device cookie).
    """
    return _device_serializer(key).dumps([_account_hash(account), token_urlsafe(12)])


def known_device(signed: str, account: str, key: bytes) -> str | None:
    """The id of the browser, if the cookie was signed for this account; None for any other text."""
    try:
        owner, device = _device_serializer(key).loads(
            signed.encode("utf-8", "surrogateescape"), max_age=DEVICE_SECONDS
        )
    except (BadData, ValueError):
        return None
    return str(device) if owner == _account_hash(account) else None


def _account_hash(account: str) -> str:
    return hashlib.sha256(account.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _device_serializer(key: bytes) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(key, salt="device", signer_kwargs={"digest_method": hashlib.sha256})


def _serializer(session: str) -> URLSafeTimedSerializer:
    key = session.encode("utf-8", "surrogateescape")
    return URLSafeTimedSerializer(key, salt="notice", signer_kwargs={"digest_method": hashlib.sha256})
