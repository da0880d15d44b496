"""Folders of buckets are downloaded with the secret that the entry names."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import httpx
import pytest
from botocore.config import Config
from moto.server import ThreadedMotoServer

from gusset.errors import ConfigInvalid, Denied, SecretsMissing, Unreachable
from gusset.secrets.masking import Masker
from gusset.weights.buckets import BucketClient
from gusset.weights.cache import WeightsCache
from gusset.weights.download import Credential, Download, SourceKind
from gusset.weights.progress import Progress
from gusset.weights.stores import store_of
from tests.weights.conftest import Fetch
from tests.weights.web_server import WebServer

BODY = random.Random(3).randbytes(200_000)
LARGE = random.Random(4).randbytes(40 << 20)
LOGIN = {"access_key_id": "AKIATESTS", "secret_access_key": "sEcReT/tests/0123456789", "region": "us-east-1"}
CREDENTIAL = Credential("aws_secret_json", "config.yaml:4: weights[0].auth_secret_name")


def entry(address: str, kind: SourceKind = SourceKind.S3, **options: object) -> Download:
    given = {"credential": CREDENTIAL, "mount": "/m"} | options
    return Download(kind=kind, address=address, location="config.yaml:3: weights[0].source", **given)


@dataclass
class Bucket:
    """A bucket of the test suite's own S3."""

    address: str
    client: object

    def put(self, key: str, body: bytes = BODY, **options: object) -> None:
        self.client.put_object(Bucket="bucket", Key=key, Body=body, **options)

    def demand_logins(self, demanded: bool = True) -> None:
        httpx.post(f"{self.address}/moto-api/reset-auth", content="0" if demanded else "1000000000")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3: str, run_fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    httpx.post(f"{s3}/moto-api/reset")
    run_fetch.environ |= {
        "AWS_ENDPOINT_URL": s3,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }
    for name, text in run_fetch.environ.items():
        monkeypatch.setenv(name, text)
    client = boto3.client(
        "s3",
        endpoint_url=s3,
        region_name="us-east-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",
        config=Config(retries={"total_max_attempts": 1}),
    )
    client.create_bucket(Bucket="bucket")
    yield Bucket(s3, client)
    Bucket(s3, client).demand_logins(False)


def fetch(run_fetch: Fetch, download: Download, login: dict[str, str] | None = LOGIN) -> Path:
    values = {} if login is None else {"aws_secret_json": json.dumps(login).encode()}
    return run_fetch(download, **values)["/m"]


def files(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()
    }


def test_a_folder_of_a_bucket_is_downloaded_with_its_folders(bucket: Bucket, run_fetch: Fetch) -> None:
    """Without the path in the bucket, and without the markers of empty folders."""
    bucket.put("models/llama/config.json", b"{}")
    bucket.put("models/llama/sub/model.bin")
    bucket.put("models/llama/sub/", b"")
    bucket.put("models/llama-2/other.bin")
    folder = fetch(run_fetch, entry("bucket/models/llama"))
    assert files(folder) == {"config.json": 2, "sub/model.bin": len(BODY)}
    assert (folder / "sub/model.bin").read_bytes() == BODY
    assert "Downloaded s3://bucket/models/llama" in run_fetch.output

    whole = fetch(
        run_fetch, entry("bucket", allow_patterns=("*.bin",), ignore_patterns=("models/llama-2/*",))
    )
    assert files(whole) == {"models/llama/sub/model.bin": len(BODY)}
    one = fetch(run_fetch, entry("bucket/models/llama/config.json"))
    assert files(one) == {"config.json": 2}


def test_a_second_start_downloads_only_what_has_changed(
    bucket: Bucket, run_fetch: Fetch, tmp_path: Path
) -> None:
    """Unchanged files are the same files on disk."""
    bucket.put("a/one.bin", b"one")
    bucket.put("a/two.bin", b"two")
    first = fetch(run_fetch, entry("bucket/a"))
    bucket.put("a/two.bin", b"TWO")
    second = fetch(run_fetch, entry("bucket/a"))
    assert (second / "two.bin").read_bytes() == b"TWO"
    assert (first / "one.bin").stat().st_ino == (second / "one.bin").stat().st_ino
    assert (first / "two.bin").read_bytes() == b"two"


def test_a_large_file_goes_on_where_it_stopped(
    bucket: Bucket, cache: WeightsCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is requested in pieces; those that are here are not requested again."""
    bucket.put("a/large.bin", LARGE)
    read = BucketClient._read
    starts: list[int] = []

    def counted(self: BucketClient, each: object, start: int, end: int) -> bytes:
        if start >= 32 << 20 and not starts.count(-1):
            starts.append(-1)
            raise KeyboardInterrupt
        starts.append(start)
        return read(self, each, start, end)

    monkeypatch.setattr(BucketClient, "_read", counted)
    value = json.dumps(LOGIN).encode()
    with pytest.raises(KeyboardInterrupt):
        BucketClient(cache, entry("bucket/a"), value, Progress("", bar=False)).fetch()
    folder = BucketClient(cache, entry("bucket/a"), value, Progress("", bar=False)).fetch()
    assert (folder / "large.bin").read_bytes() == LARGE
    assert starts == [0, 16 << 20, -1, 32 << 20]


def test_a_file_that_is_not_what_its_hash_says_is_removed(
    bucket: Bucket, cache: WeightsCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ETag of a file that was uploaded at once is its MD5, unless a key of KMS encrypts it."""
    bucket.put("a/x.bin")
    bucket.put("k/x.bin", ServerSideEncryption="aws:kms")
    monkeypatch.setattr(BucketClient, "_read", lambda self, each, start, end: bytes(end - start))
    value = json.dumps(LOGIN).encode()
    with pytest.raises(Unreachable, match="does not have the hash that the store gave"):
        BucketClient(cache, entry("bucket/a"), value, Progress("", bar=False)).fetch()
    assert not any((cache.root / "partial").iterdir())
    assert BucketClient(cache, entry("bucket/k"), value, Progress("", bar=False)).fetch().is_dir()


@pytest.mark.parametrize("keys", [("a/../../escaped",), ("a//x",), ("a/x", "a/x/y"), ("a/\\x",)])
def test_names_that_leave_the_folder_are_refused(
    bucket: Bucket, run_fetch: Fetch, tmp_path: Path, keys: tuple[str, ...]
) -> None:
    """A bucket may have any name; a folder may not."""
    for key in keys:
        bucket.put(key)
    with pytest.raises((Unreachable, ConfigInvalid)):
        fetch(run_fetch, entry("bucket/a"))
    assert not list(tmp_path.rglob("*escaped*"))


def test_a_private_bucket_names_secret_and_line(bucket: Bucket, run_fetch: Fetch) -> None:
    """With a wrong secret, and with one of another form."""
    bucket.put("a/x.bin")
    bucket.demand_logins()
    with pytest.raises(Denied, match="refuses the value of the secret aws_secret_json") as error:
        fetch(run_fetch, entry("bucket/a"))
    assert LOGIN["secret_access_key"] not in f"{error.value}{error.value.hint}{run_fetch.output}"
    with pytest.raises(Denied, match="is not a login for s3://bucket/a") as error:
        fetch(run_fetch, entry("bucket/a"), {"password": "x"})
    assert "access_key_id" in (error.value.hint or "")


def test_a_private_bucket_without_the_secret_names_secret_and_line(
    bucket: Bucket, run_fetch: Fetch, web: WebServer
) -> None:
    """The store refuses a request without a login. (moto has a bug there, so this is another server.)"""
    web.put("/bucket", b"", token=b"any")
    run_fetch.environ["AWS_ENDPOINT_URL"] = web.address
    with pytest.raises(SecretsMissing, match=r"the secret aws_secret_json \(config.yaml:4: .*has no value"):
        fetch(run_fetch, entry("bucket/a"), None)


def test_a_public_bucket_needs_no_login(bucket: Bucket, run_fetch: Fetch) -> None:
    """The secret that the entry names does not exist, and nothing on the machine has a login."""
    bucket.client.put_bucket_acl(Bucket="bucket", ACL="public-read")
    bucket.put("a/x.bin", ACL="public-read")
    assert files(fetch(run_fetch, entry("bucket/a"), None)) == {"x.bin": len(BODY)}


def test_what_is_not_there_is_an_error_of_the_config(bucket: Bucket, run_fetch: Fetch) -> None:
    """Another bucket, an empty folder, or patterns that choose nothing."""
    with pytest.raises(ConfigInvalid, match="s3://other/a does not exist"):
        fetch(run_fetch, entry("other/a"))
    with pytest.raises(ConfigInvalid, match="does not exist"):
        fetch(run_fetch, entry("bucket/a"))
    bucket.put("a/x.bin")
    with pytest.raises(ConfigInvalid, match="no file that matches the patterns"):
        fetch(run_fetch, entry("bucket/a", allow_patterns=("*.json",)))


def test_without_a_network_the_cache_is_used(
    bucket: Bucket, cache: WeightsCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that does not respond is an error only if nothing is here."""
    bucket.put("a/x.bin")
    value = json.dumps(LOGIN).encode()

    def client() -> BucketClient:
        return BucketClient(cache, entry("bucket/a"), value, Progress("", bar=False), first_delay=0)

    folder = client().fetch()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert client().fetch() == folder
    with pytest.raises(Unreachable, match="s3://bucket/b cannot be downloaded"):
        BucketClient(cache, entry("bucket/b"), value, Progress("", bar=False), first_delay=0).fetch()


def test_the_login_is_in_no_file(
    bucket: Bucket, run_fetch: Fetch, tmp_path: Path, leaking_files: Callable[..., list[Path]]
) -> None:
    """Neither in the cache, nor in the output."""
    bucket.put("a/x.bin")
    fetch(run_fetch, entry("bucket/a"))
    assert leaking_files([tmp_path], LOGIN["secret_access_key"].encode()) == []
    assert isinstance(run_fetch.masker, Masker)


def login_of(kind: SourceKind, address: str, value: object) -> tuple[str, str, dict[str, object]]:
    given = value if isinstance(value, bytes) else json.dumps(value).encode()
    store = store_of(entry(address, kind), given)
    return store.protocol, store.path, store.options


def test_every_kind_of_bucket_has_its_own_form_of_login() -> None:
    """As Truss documents them. A repr shows none of it."""
    protocol, path, options = login_of(SourceKind.R2, "0123ab.bucket/a", LOGIN)
    assert (protocol, path) == ("s3", "bucket/a")
    assert options["endpoint_url"] == "https://0123ab.r2.cloudflarestorage.com"
    assert options["secret"] == LOGIN["secret_access_key"]

    _, _, options = login_of(SourceKind.COREWEAVE, "bucket/a", LOGIN)
    assert options["endpoint_url"] == "https://cwobject.com"

    old = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "aws_session_token": "t"}
    _, _, options = login_of(SourceKind.S3, "bucket/a", old)
    assert (options["key"], options["secret"], options["token"]) == ("k", "s", "t")

    account = {"private_key": "-----BEGIN", "client_email": "a@b.test"}
    protocol, path, options = login_of(SourceKind.GCS, "bucket/a", account)
    assert (protocol, path, options["token"]["type"]) == ("gs", "bucket/a", "service_account")

    protocol, path, options = login_of(SourceKind.AZURE, "account/container/a", {"account_key": "k"})
    assert (protocol, path) == ("az", "container/a")
    assert options == {"account_name": "account", "account_key": "k"}
    text = b"DefaultEndpointsProtocol=https;AccountName=account;AccountKey=k"
    assert login_of(SourceKind.AZURE, "account/c", text)[2] == {"connection_string": text.decode()}
    assert "private" not in repr(store_of(entry("b", SourceKind.GCS), json.dumps(account).encode()))


@pytest.mark.parametrize("kind", [SourceKind.S3, SourceKind.R2, SourceKind.GCS, SourceKind.AZURE])
@pytest.mark.parametrize("value", [b"", b"text", b"[]", b"{}", b'{"access_key_id": 1}', b"[" * 100_000])
def test_what_is_no_login_is_refused_without_quoting_it(kind: SourceKind, value: bytes) -> None:
    """The error says which form is expected."""
    with pytest.raises(Denied, match="is not a login") as error:
        store_of(entry("abc.d/e/f", kind), value)
    assert "must be" in (error.value.hint or "")


def test_buckets_of_two_accounts_share_nothing(cache: WeightsCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns a bucket of the same name could announce the same ETag and size for another content."""

    class OneFile:
        def __init__(self, body: bytes) -> None:
            self.body = body

        def info(self, path: str) -> dict[str, object]:
            return {"ETag": '"same"', "size": len(self.body)}

        def find(self, root: str, detail: bool) -> dict[str, object]:
            return {f"{root}/x": self.info(root)}

        def cat_file(self, path: str, start: int, end: int) -> bytes:
            return self.body[start:end]

    for account, body in (("first", b"evil"), ("second", b"good")):
        monkeypatch.setattr("fsspec.filesystem", lambda *_, body=body, **__: OneFile(body))
        bucket = entry(f"{account}.bucket/a", SourceKind.R2)
        folder = BucketClient(cache, bucket, json.dumps(LOGIN).encode(), Progress("x", bar=False)).fetch()
        assert (folder / "x").read_bytes() == body
