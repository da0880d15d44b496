"""What is derived from a session: the CSRF token of its forms, and signed flash notices."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace

from itsdangerous import BadData, URLSafeTimedSerializer

from gusset.manager.pages.page_types import Notice

NOTICE_SECONDS = 60
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


def _serializer(session: str) -> URLSafeTimedSerializer:
    key = session.encode("utf-8", "surrogateescape")
    return URLSafeTimedSerializer(key, salt="notice", signer_kwargs={"digest_method": hashlib.sha256})
