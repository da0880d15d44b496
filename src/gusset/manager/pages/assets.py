"""Serves the static files of the pages: style sheet, scripts, icon."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import cache

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gusset.manager.pages.rendering import STATIC, fingerprint

_TYPES = {
    "style.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "htmx.min.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "htmx.LICENSE": "text/plain; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file's content, plain and compressed with gzip."""

    plain: bytes
    gzipped: bytes


@cache
def asset(name: str) -> Asset:
    plain = (STATIC / name).read_bytes()
    return Asset(plain, gzip.compress(plain, 9, mtime=0))


async def static(request: Request) -> Response:
    """Serve one file. A URL with the file's fingerprint may be cached forever."""
    request.scope["route_path"] = "/static"
    name = request.path_params["name"]
    if name not in _TYPES:
        raise HTTPException(404)
    found, tag = asset(name), f'"{fingerprint(name)}"'
    immutable = request.query_params.get("v") == fingerprint(name)
    headers = {
        "cache-control": "public, max-age=31536000, immutable" if immutable else "no-cache",
        "etag": tag,
        "vary": "accept-encoding",
        "content-type": _TYPES[name],
        "cross-origin-resource-policy": "same-origin",
    }
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(found.gzipped, headers={**headers, "content-encoding": "gzip"})
    return Response(found.plain, headers=headers)
