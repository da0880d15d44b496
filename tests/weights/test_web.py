"""Downloads over HTTP are resumed, checked and cached."""

from __future__ import annotations

import base64
import errno
import gzip
import hashlib
import os
import random
import shutil
import threading
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from gusset.errors import ConfigInvalid, Denied, HostError, SecretsMissing, Unreachable
from gusset.weights.cache import CachedFile, WeightsCache
from gusset.weights.download import Credential, Download, SourceKind
from gusset.weights.progress import Progress
from gusset.weights.web import WebClient
from tests.weights.web_server import WebServer

BODY = random.Random(1).randbytes(300_000)
TOKEN = b"tok-3f9c1a7e5b"


def download(url: str, credential: Credential | None = None) -> Download:
    location = "config.yaml:3: weights[0].source"
    return Download(kind=SourceKind.WEB, address=url, location=location, credential=credential)


def fetch(client: WebClient, url: str, token: bytes | None = None, **options: Credential) -> CachedFile:
    progress = Progress(url, bar=False)
    return client.fetch(download(url, **options), token.decode() if token else None, progress)


def test_a_file_is_stored_once_by_its_content(client: WebClient, web: WebServer) -> None:
    """Two URLs with the same content share one file, which is read-only."""
    first = fetch(client, web.put("/a.bin", BODY))
    second = fetch(client, web.put("/b.bin", BODY))

    assert first.path == second.path
    assert first.path.name == hashlib.sha256(BODY).hexdigest()
    assert first.path.read_bytes() == BODY
    assert first.path.stat().st_mode & 0o777 == 0o444


def test_an_unchanged_file_is_not_downloaded_again(client: WebClient, web: WebServer) -> None:
    """The ETag is sent along, and a changed file is downloaded."""
    url = web.put("/a.bin", BODY)
    fetch(client, url)
    assert fetch(client, url).path.read_bytes() == BODY
    assert web.statuses == [200, 304]

    web.put("/a.bin", b"new")
    assert fetch(client, url).path.read_bytes() == b"new"


@pytest.mark.parametrize("etag", ['"strong"', 'W/"weak"'])
def test_every_form_of_etag_is_sent_along(client: WebClient, web: WebServer, etag: str) -> None:
    """A weak one, too, proves that a file has not changed."""
    url = web.put("/a.bin", BODY, etag=etag)
    fetch(client, url)
    fetch(client, url)
    assert web.statuses == [200, 304]


@pytest.mark.parametrize("date", [{}, {"Last-Modified": "Mon, 30 Nov 2026 09:00:00 GMT"}], ids=["", "date"])
def test_an_etag_that_is_not_ascii_keeps_nothing_from_being_used(
    client: WebClient, web: WebServer, date: dict[str, str]
) -> None:
    """It is not sent back; a date is, in its place."""
    url = web.put("/a.bin", BODY, etag='"\xe9"', headers=date, breaks_after=200_000, faulty=1)
    fetch(client, url)
    assert fetch(client, url).path.read_bytes() == BODY
    assert web.seen[-1].since == date.get("Last-Modified")


def test_a_date_that_is_not_ascii_keeps_nothing_from_being_used(client: WebClient, web: WebServer) -> None:
    """It counts as none."""
    url = web.put("/a.bin", BODY, etag="", headers={"Last-Modified": "30. f\xe9vrier"})
    fetch(client, url)
    assert fetch(client, url).path.read_bytes() == BODY


def test_a_validator_that_is_not_ascii_and_that_the_cache_has_is_not_sent(
    client: WebClient, cache: WeightsCache, web: WebServer
) -> None:
    """An older gusset has stored it, with the file or with a part of it."""
    url = web.put("/a.bin", BODY)
    known = fetch(client, url)
    entry = cache.read_entry(url)
    cache.write_entry(url, entry | {"validator": '"\xe9"'})
    assert fetch(client, url) == known
    for kept in (entry, {}):
        cache.write_entry(url, kept)
        partial = cache.partial(url)
        partial.write_bytes(b"x")
        partial.with_name(partial.name + ".validator").write_text('"\xe9"')
        web.put("/a.bin", BODY[::-1])
        assert fetch(client, url).path.read_bytes() == BODY[::-1]


@pytest.mark.parametrize("location", ["http://a..b/", "http://xn--/", "mailto:x", "http://[::1", "/\xe9"])
def test_a_redirect_to_nowhere_leaves_the_file_in_the_cache(
    client: WebClient, web: WebServer, location: str
) -> None:
    """What a server sends in a header is no error of gusset's; without the file it is one of the server."""
    url = web.put("/a.bin", BODY)
    known = fetch(client, url)
    for path in ("/a.bin", "/b.bin"):
        web.put(path, b"", redirect=location, headers={"Set-Cookie": "a=\xe9"})
    assert fetch(client, url) == known
    with pytest.raises(Unreachable):
        fetch(client, web.address + "/b.bin")


def test_without_an_etag_the_size_says_whether_a_file_has_changed(client: WebClient, web: WebServer) -> None:
    """A body of the same size is not read."""
    url = web.put("/a.bin", BODY, etag="")
    fetch(client, url)
    web.put("/a.bin", bytes(len(BODY)), etag="")
    assert fetch(client, url).path.read_bytes() == BODY
    web.put("/a.bin", b"shorter", etag="")
    assert fetch(client, url).path.read_bytes() == b"shorter"


def test_a_download_that_breaks_off_goes_on_from_there(client: WebClient, web: WebServer) -> None:
    """Only what is missing is requested, as often as each attempt brings something new."""
    url = web.put("/a.bin", BODY, breaks_after=20_000, faulty=12)
    assert fetch(client, url).path.read_bytes() == BODY
    assert [each.range for each in web.seen][:3] == [None, "bytes=20000-", "bytes=40000-"]


def test_the_next_start_goes_on_from_there(cache: WeightsCache, web: WebServer) -> None:
    """A killed process leaves a part of the file, which another one completes."""
    url = web.put("/a.bin", BODY, breaks_after=100_000, faulty=1)

    def killed(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), closing(WebClient(cache, sleep=killed)) as client:
        fetch(client, url)
    with closing(WebClient(cache)) as client:
        assert fetch(client, url).path.read_bytes() == BODY
    assert web.seen[-1].range == "bytes=100000-"


def test_a_part_of_an_older_file_is_dropped(cache: WeightsCache, web: WebServer) -> None:
    """A file that has changed since is downloaded from its beginning."""
    url = web.put("/a.bin", BODY, breaks_after=100_000, faulty=1)

    def change(_: float) -> None:
        web.put("/a.bin", BODY[::-1])

    with closing(WebClient(cache, sleep=change)) as client:
        assert fetch(client, url).path.read_bytes() == BODY[::-1]


def test_a_server_without_ranges_sends_everything_again(client: WebClient, web: WebServer) -> None:
    """Without an ETag nothing is resumed, since the file may be another one."""
    url = web.put("/a.bin", BODY, etag="", breaks_after=100_000, faulty=2)
    assert fetch(client, url).path.read_bytes() == BODY
    assert {each.range for each in web.seen} == {None}


def test_a_server_that_is_busy_is_tried_again(
    client: WebClient, web: WebServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Five retries, which are logged, then the error says why."""
    assert fetch(client, web.put("/a.bin", BODY, status=503, faulty=3)).size == len(BODY)
    assert "the server responds with status 503; trying again in" in caplog.text
    with pytest.raises(Unreachable, match="status 503"):
        fetch(client, web.put("/b.bin", BODY, status=503))
    assert web.statuses.count(503) == 3 + 6


@pytest.mark.parametrize("says", [len(BODY) + 1, 2 * len(BODY)])
def test_a_body_shorter_than_announced_is_never_used(client: WebClient, web: WebServer, says: int) -> None:
    """It counts as broken off."""
    url = web.put("/a.bin", BODY, says=says, etag="")
    with pytest.raises(Unreachable, match="broke off"):
        fetch(client, url)


def test_a_server_that_cannot_be_reached_is_no_silent_wait(
    client: WebClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says why nothing is downloaded yet, before the error does."""
    with pytest.raises(Unreachable):
        fetch(client, "http://127.0.0.1:9/a.bin")
    assert "trying again in" in caplog.text


def test_bytes_beyond_the_announced_length_are_not_read(client: WebClient, web: WebServer) -> None:
    """The file has the length that the server announced."""
    assert fetch(client, web.put("/a.bin", BODY, says=1000)).path.read_bytes() == BODY[:1000]


def test_an_endless_body_does_not_fill_the_disk(
    client: WebClient, web: WebServer, monkeypatch: pytest.MonkeyPatch, cache: WeightsCache
) -> None:
    """A body of unknown length stops when little space is left, and is removed."""
    free = iter([1 << 31, 1 << 31, (1 << 30) - 1])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=next(free)))
    url = web.put("/a.bin", b"", endless=True)
    with pytest.raises(HostError, match="fills the disk"):
        fetch(client, url)
    assert cache.partial(url).stat().st_size == 0


def test_a_file_that_is_too_large_is_not_begun(
    client: WebClient, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The length is known before the first byte."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(HostError, match="300000 more bytes are needed, 1000 are free"):
        fetch(client, web.put("/a.bin", BODY))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG], ids=errno.errorcode.get)
def test_a_full_disk_is_an_error_of_the_machine(
    client: WebClient, web: WebServer, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A quota or the largest size of a file, too. The error says that the download can be resumed."""

    def full(_: Path) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("gusset.weights.web.open_partial", full)
    with pytest.raises(HostError, match="no space left") as error:
        fetch(client, web.put("/a.bin", BODY))
    assert "resumes where it stopped" in (error.value.hint or "")


HASHES = [
    {"Repr-Digest": f"sha-256=:{base64.b64encode(hashlib.sha256(BODY).digest()).decode()}:"},
    {"X-Linked-ETag": f'"{hashlib.sha256(BODY).hexdigest()}"'},
    {"Content-MD5": base64.b64encode(hashlib.md5(BODY).digest()).decode()},
    {"X-Goog-Hash": f"crc32c=AAAAAA==, md5={base64.b64encode(hashlib.md5(BODY).digest()).decode()}"},
]


@pytest.mark.parametrize("headers", HASHES, ids=lambda headers: next(iter(headers)))
def test_a_wrong_hash_is_an_error(
    client: WebClient, cache: WeightsCache, web: WebServer, headers: dict[str, str]
) -> None:
    """What the server says of its file is checked, and a wrong file is removed."""
    assert fetch(client, web.put("/good.bin", BODY, headers=headers)).size == len(BODY)
    url = web.put("/bad.bin", BODY[::-1], headers=headers)
    with pytest.raises(Unreachable, match="hash"):
        fetch(client, url)
    assert not cache.partial(url).exists()


def test_a_hash_of_a_redirect_counts(client: WebClient, web: WebServer) -> None:
    """The hub gives the hash in the redirect to its storage."""
    target = web.put("/storage", BODY[::-1])
    digest = {"X-Linked-ETag": f'"{hashlib.sha256(BODY).hexdigest()}"'}
    with pytest.raises(Unreachable, match="sha256 hash"):
        fetch(client, web.put("/a.bin", b"", redirect=target, headers=digest))


def test_a_token_stays_at_its_own_origin(client: WebClient, web: WebServer) -> None:
    """A redirect to another host, or port, gets no credentials."""
    other_name = web.address.replace("127.0.0.1", "localhost")
    web.put("/storage", BODY)
    url = web.put("/a.bin", b"", token=TOKEN, redirect=f"{other_name}/storage")
    assert fetch(client, url, TOKEN).size == len(BODY)
    assert [each.authorized for each in web.seen] == [True, False]


def test_https_does_not_lead_to_http(client: WebClient, cache: WeightsCache) -> None:
    """The file could be replaced on its way, and the URL be read."""
    requested = []

    def respond(request: httpx.Request) -> httpx.Response:
        requested.append(str(request.url))
        return httpx.Response(302, headers={"Location": "http://h.test/plain"})

    client._http = httpx.Client(transport=httpx.MockTransport(respond))
    with pytest.raises(Unreachable, match="redirects from https to another scheme"):
        fetch(client, "https://h.test/a.bin", TOKEN)
    assert requested == ["https://h.test/a.bin"]


def test_a_url_that_no_server_can_have_is_a_mistake_in_the_config(client: WebClient) -> None:
    """What cannot be seen before: the rules of names in other alphabets are httpx's."""
    with pytest.raises(ConfigInvalid, match=r"config\.yaml:3: .* is not a URL that can be fetched"):
        fetch(client, "https://\u2603.example/a.bin")


def test_a_redirect_to_what_no_server_can_have_is_a_failure_of_the_server(
    client: WebClient, web: WebServer
) -> None:
    with pytest.raises(Unreachable, match="one that it redirects to, cannot be requested"):
        fetch(client, web.put("/a.bin", b"", redirect="http://storage..example/a.bin"))


def test_redirects_end(client: WebClient, web: WebServer) -> None:
    """A circle of redirects is an error."""
    with pytest.raises(Unreachable, match="redirects too often"):
        fetch(client, web.put("/a.bin", b"", redirect=f"{web.address}/a.bin"))


CREDENTIAL = Credential("hf_token", "config.yaml:5: weights[0].auth_secret_name")


def test_a_file_that_needs_a_login_names_secret_and_line(client: WebClient, web: WebServer) -> None:
    """Without the secret, with a wrong one, and where the entry names none."""
    url = web.put("/a.bin", BODY, token=TOKEN)
    with pytest.raises(
        SecretsMissing, match=r"the secret hf_token \(config.yaml:5: .*has no value"
    ) as missing:
        fetch(client, url, credential=CREDENTIAL)
    assert "gusset secret set hf_token" in (missing.value.hint or "")
    with pytest.raises(Denied, match="hf_token") as denied:
        fetch(client, url, b"another-token", credential=CREDENTIAL)
    assert "another-token" not in str(denied.value)
    with pytest.raises(SecretsMissing, match="names no secret"):
        fetch(client, url)
    assert fetch(client, url, TOKEN, credential=CREDENTIAL).size == len(BODY)


def test_a_missing_file_is_an_error_of_the_config(client: WebClient, web: WebServer) -> None:
    """It names the line, and shows nothing of the query, which may be a signature."""
    with pytest.raises(
        ConfigInvalid, match=r"^config.yaml:3: weights\[0\].source: .*/a.bin does not exist"
    ) as e:
        fetch(client, f"{web.address}/a.bin?signature=s3cr3t")
    assert "s3cr3t" not in str(e.value)


def test_no_server_is_unreachable_unless_the_file_is_cached(client: WebClient, web: WebServer) -> None:
    """A start without a network uses what it has."""
    with pytest.raises(Unreachable, match="no connection"):
        fetch(client, "http://127.0.0.1:9/a.bin")
    url = web.put("/a.bin", BODY)
    fetch(client, url)
    web.put("/a.bin", BODY, status=503)
    assert fetch(client, url).path.read_bytes() == BODY


def test_two_starts_share_one_download(cache: WeightsCache, web: WebServer) -> None:
    """The second one waits for the first, and then only checks whether the file has changed."""
    url = web.put("/a.bin", BODY, pause=0.05)
    clients = [WebClient(cache) for _ in range(3)]
    threads = [threading.Thread(target=fetch, args=(client, url)) for client in clients]
    for thread in threads:
        thread.start()
    for thread, client in zip(threads, clients, strict=True):
        thread.join()
        client.close()
    assert sorted(web.statuses) == [200, 304, 304]


def test_a_file_that_somebody_changed_is_downloaded_again(
    client: WebClient, cache: WeightsCache, web: WebServer
) -> None:
    """The cache notices by size or date, then by the hash."""
    url = web.put("/a.bin", BODY)
    path = fetch(client, url).path
    path.chmod(0o644)
    path.write_bytes(BODY[:-1] + b"!")
    assert cache.find(url) is None
    assert fetch(client, url).path.read_bytes() == BODY


def test_a_body_is_decompressed_once_at_most(client: WebClient, web: WebServer) -> None:
    """A few kilobytes that are compressed twice could expand to more than the memory."""
    once = gzip.compress(bytes(1 << 20))
    assert fetch(client, web.put("/a", once, headers={"Content-Encoding": "gzip"})).size == 1 << 20
    for name in ("gzip, gzip", "zstd", "br"):
        url = web.put("/b", gzip.compress(once), headers={"Content-Encoding": name})
        with pytest.raises(Unreachable, match="compresses it"):
            fetch(client, url)


def test_a_cache_that_others_can_write_is_refused(tmp_path: Path) -> None:
    """Another account could put its own files there."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(HostError, match="other accounts can write"):
        WeightsCache.open(folder)


def test_a_cache_in_a_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    """Another account could move the cache away and put its own in that place, while a model loads."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)

    with pytest.raises(HostError, match="other accounts can write") as error:
        WeightsCache.open(tmp_path / "shared" / "weights")
    assert f"chmod go-w {tmp_path / 'shared'}" in str(error.value.hint)


def test_a_server_that_stalls_is_tried_again(
    client: WebClient, web: WebServer, cache: WeightsCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while without a byte; what has arrived is kept."""
    monkeypatch.setattr("gusset.weights.web._TIMEOUT", httpx.Timeout(2))
    url = web.put("/a.bin", BODY, pause=30, faulty=1)
    with closing(WebClient(cache, first_delay=0)) as impatient:
        assert fetch(impatient, url).path.read_bytes() == BODY
    assert web.seen[-1].range is not None
