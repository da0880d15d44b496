"""Reads what a browser's form sends, exactly or not at all; in memory alone, for a value may be in it."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from gusset.manager.middleware import MOST_BYTES
from gusset.manager.pages.page_types import Form

_FIELDS = 100


class _Parser(MultiPartParser):
    """Keeps parts in memory (the body is limited before it comes here), and text that is UTF-8 alone."""

    spool_max_size = 2 * MOST_BYTES

    def on_part_end(self) -> None:
        if self._current_part.file is None:
            try:
                self._current_part.data.decode("utf-8")
            except UnicodeDecodeError:
                raise MultiPartException("a field is not UTF-8") from None
            self._charset = "utf-8"
        super().on_part_end()


async def read_form(request: Request) -> Form:
    """The fields and the file of a form. Raises HTTPException for what is none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "multipart/form-data":
            return await _multipart(request)
        if kind in ("application/x-www-form-urlencoded", ""):
            return Form(_encoded(await request.body()))
    except (MultiPartException, ValueError):
        raise HTTPException(400, "the form did not come whole, or is not in UTF-8") from None
    raise HTTPException(415, "that is not a form")


def _encoded(body: bytes) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for name, text in parse_qsl(
        body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_FIELDS
    ):
        fields.setdefault(name, []).append(text)
    return fields


async def _multipart(request: Request) -> Form:
    parser = _Parser(
        request.headers, request.stream(), max_files=1, max_fields=_FIELDS, max_part_size=MOST_BYTES
    )
    data = await parser.parse()
    fields: dict[str, list[str]] = {}
    file = None
    for name, part in data.multi_items():
        if isinstance(part, str):
            fields.setdefault(name, []).append(part)
        elif name == "file" and (part.filename or part.size):  # neither: none was chosen
            file = await part.read()
    await data.close()
    return Form(fields, file)


def from_elsewhere(request: Request) -> bool:
    """Whether a browser says that a page of another site sent this."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin not in (None, "null") and urlsplit(origin or "").netloc != request.url.netloc
