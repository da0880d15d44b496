"""Parses submitted forms: strictly, and only in memory, since a form may hold a secret's value."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from gusset.manager.middleware import MAX_BODY
from gusset.manager.pages.page_types import Form

_MAX_FIELDS = 100


class _Parser(MultiPartParser):
    """Keeps all parts in memory, whose size is already limited, and refuses text that is not UTF-8."""

    spool_max_size = 2 * MAX_BODY

    def on_part_end(self) -> None:
        if self._current_part.file is None:
            try:
                self._current_part.data.decode("utf-8")
            except UnicodeDecodeError:
                raise MultiPartException("a field is not UTF-8") from None
            self._charset = "utf-8"
        super().on_part_end()


async def read_form(request: Request) -> Form:
    """The fields and the file of a form. Raises HTTPException for anything that is not a form."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if content_type == "multipart/form-data":
            return await _multipart(request)
        if content_type in ("application/x-www-form-urlencoded", ""):
            return Form(_url_encoded(await request.body()))
    except (MultiPartException, ValueError):
        raise HTTPException(400, "the form is incomplete, or is not valid UTF-8") from None
    raise HTTPException(415, "the request is not a form")


def _url_encoded(body: bytes) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for name, text in parse_qsl(
        body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS
    ):
        fields.setdefault(name, []).append(text)
    return fields


async def _multipart(request: Request) -> Form:
    parser = _Parser(
        request.headers, request.stream(), max_files=1, max_fields=_MAX_FIELDS, max_part_size=MAX_BODY
    )
    data = await parser.parse()
    fields: dict[str, list[str]] = {}
    file = None
    for name, part in data.multi_items():
        if isinstance(part, str):
            fields.setdefault(name, []).append(part)
        elif name == "file" and (part.filename or part.size):  # otherwise no file was chosen
            file = await part.read()
    await data.close()
    return Form(fields, file)


def is_cross_site(request: Request) -> bool:
    """Whether the browser's headers say that another site's page sent this request."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("origin")
    if origin in (None, "null"):
        return False
    try:
        return urlsplit(origin or "").netloc != request.url.netloc
    except ValueError:  # no browser sends such an origin
        return True
