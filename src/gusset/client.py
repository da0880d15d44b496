"""Talks to a manager: the verbs of its API, and a deployment's source of secrets over HTTP."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import random
import secrets as tokens
import socket
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlsplit

from gusset import errors
from gusset.addresses import is_loopback
from gusset.backoff import Backoff
from gusset.errors import GussetError, NotSignedIn, Unreachable, UsageError
from gusset.secrets.info import SecretInfo, VersionInfo
from gusset.secrets.sources.source import Delivered
from gusset.secrets.value import SecretValue

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("gusset.client")

TIMEOUT = 10.0  # seconds for an answer
SILENCE = 25.0  # seconds without a heart-beat, and a stream is given up
FIRST_RETRY = 0.5  # seconds
TOKEN_LASTS = timedelta(days=7)  # then a running deployment registers again


class ManagerClient:
    """One manager, as the holder of `key` may use it.

    Every method raises NotSignedIn or Denied when the key is not good for it,
    Unreachable when the manager does not answer as one, and else what the
    manager's answer says.
    """

    def __init__(self, url: str, key: SecretValue, *, insecure_http: bool = False) -> None:
        self.url = checked_url(url, insecure_http=insecure_http)
        self.host = urlsplit(self.url).netloc
        self._key = key
        self._http: httpx.Client | None = None

    def __repr__(self) -> str:
        return f"ManagerClient({self.url!r})"

    def close(self) -> None:
        if self._http is not None:
            self._http.close()

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str] = {},
        headers: Mapping[str, str] = {},
    ) -> dict[str, Any]:
        """One request of the API; the JSON of its answer."""
        import httpx

        try:
            answer = self.http.request(
                method, path, json=body, params=query, headers={**self.authorization(), **headers}
            )
        except httpx.HTTPError as error:
            raise self.unreachable(error) from None
        return self.answer(answer.status_code, answer.content)

    @property
    def http(self) -> httpx.Client:
        if self._http is None:
            import httpx  # most commands need none of this

            logging.getLogger("httpx").setLevel(logging.WARNING)
            self._http = httpx.Client(base_url=self.url, timeout=TIMEOUT, follow_redirects=False)
        return self._http

    def authorization(self) -> dict[str, str]:
        return {"authorization": "Bearer " + self._key.reveal().decode("latin-1")}

    def answer(self, status: int, content: bytes) -> dict[str, Any]:
        """What an answer says; raises the error that it is."""
        try:
            data = json.loads(content)
        except ValueError:
            data = None
        if status == 200 and isinstance(data, dict):
            return data
        if isinstance(data, dict) and isinstance(data.get("code"), str):
            raise _error(status, data)
        raise Unreachable(
            f"{self.host} does not answer as a gusset manager does (HTTP {status})", hint=_IS_IT
        )

    def unreachable(self, error: Exception) -> Unreachable:
        """A transport's failure in our words; its own text may hold anything."""
        return Unreachable(
            f"the manager at {self.host} does not answer ({type(error).__name__})",
            hint="is it running, and is the address right?",
        )


_IS_IT = "look at the address: is it the manager's?"


def _codes(cls: type[GussetError]) -> Iterator[tuple[str, type[GussetError]]]:
    yield cls.code, cls
    for each in cls.__subclasses__():
        yield from _codes(each)


_BY_CODE = dict(_codes(GussetError))
# Made of more than a message, or about this machine and not about the manager's.
_NOT_FROM_AFAR = (errors.ConfigInvalid, errors.CheckFailed, errors.SecretsMissing, errors.SecretLookupError)


def _error(status: int, data: Mapping[str, Any]) -> GussetError:
    """The error that the manager's JSON names."""
    cls = _BY_CODE.get(data["code"], GussetError)
    if status >= 500 or cls is GussetError or issubclass(cls, _NOT_FROM_AFAR):
        cls = Unreachable if status >= 500 else UsageError
    hint = data.get("hint")
    return cls(
        str(data.get("message", "the manager refused"))[:2000], hint=str(hint)[:2000] if hint else None
    )


def checked_url(url: str, *, insecure_http: bool = False) -> str:
    """An address of a manager, without a trailing slash.

    Raises:
        UsageError: it is none, holds a password, or others could read what goes there.
    """
    parts = urlsplit(url.rstrip("/"))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError("the manager's address is https://HOST or http://127.0.0.1:8700")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            "the manager's address has no user, password or query in it", hint="see `gusset login`"
        )
    if parts.scheme == "http" and not insecure_http and not is_loopback(parts.hostname):
        raise UsageError(
            f"plain HTTP to {parts.hostname} would let others on the network read keys and values",
            hint="use https://, or --insecure-http if you mean it",
        )
    return url.rstrip("/")


class RemoteSecrets:
    """A team's secrets on a manager: the verbs of the vault's `SecretStore`.

    Who acts is told by the key; `actor` is there so that both are called alike.
    """

    def __init__(self, client: ManagerClient) -> None:
        self._client = client

    def set(
        self,
        name: str,
        value: SecretValue,
        *,
        actor: str,
        note: str | None = None,
        expires_at: datetime | None = None,
        expect_version: int | None = None,
    ) -> SecretInfo:
        body = {"name": name, **_encoded(value)}
        if note is not None:
            body["note"] = note
        if expires_at is not None:
            body["expires_at"] = expires_at.isoformat()
        headers = {}
        if expect_version is not None:
            headers = {"if-match": f'"{expect_version}"'} if expect_version else {"if-none-match": "*"}
        return _info(self._client.call("POST", "/v1/secrets", body, headers=headers))

    def set_many(self, values: Sequence[tuple[str, SecretValue]], *, actor: str) -> list[SecretInfo]:
        body = {"secrets": [{"name": name, **_encoded(value)} for name, value in values]}
        return [_info(each) for each in self._client.call("POST", "/v1/secrets:batch", body)["secrets"]]

    def list(self, *, include_deleted: bool = False) -> list[SecretInfo]:
        query = {"deleted": "true"} if include_deleted else {}
        return [_info(each) for each in self._client.call("GET", "/v1/secrets", query=query)["secrets"]]

    def get(self, name: str) -> SecretInfo:
        return _info(self._client.call("GET", _path(name)))

    def history(self, name: str) -> Sequence[VersionInfo]:
        found = self._client.call("GET", _path(name) + "/versions")["versions"]
        return [VersionInfo(v["version"], v["created_at"], v["created_by"], v["state"]) for v in found]

    def annotate(
        self,
        name: str,
        *,
        actor: str,
        note: str | None = None,
        expires_at: datetime | Literal["never"] | None = None,
    ) -> SecretInfo:
        body: dict[str, Any] = {}
        if note is not None:
            body["note"] = note or None
        if expires_at is not None:
            body["expires_at"] = None if expires_at == "never" else expires_at.isoformat()
        return _info(self._client.call("PATCH", _path(name), body))

    def rollback(self, name: str, version: int, *, actor: str) -> SecretInfo:
        return _info(self._client.call("POST", _path(name) + "/rollback", {"version": version}))

    def destroy(self, name: str, versions: Collection[int] | None = None, *, actor: str) -> SecretInfo:
        body = {"versions": sorted(versions) if versions is not None else None}
        return _info(self._client.call("POST", _path(name) + "/destroy", body))

    def restore(self, name_or_id: str, *, actor: str) -> SecretInfo:
        return _info(self._client.call("POST", _path(name_or_id) + "/restore"))

    def delete(self, name: str, *, actor: str, force: bool = False) -> SecretInfo:
        info = self.get(name)
        self._client.call("DELETE", _path(name), query={"force": "true"} if force else {})
        return info


def _path(name: str) -> str:
    return "/v1/secrets/" + quote(name, safe="")


def _encoded(value: SecretValue) -> dict[str, Any]:
    return {"value": base64.b64encode(value.reveal()).decode(), "encoding": "base64"}


def _info(data: Mapping[str, Any]) -> SecretInfo:
    optional = (data.get(key) for key in ("deleted_at", "note", "expires_at", "last_read_at"))
    return SecretInfo(
        data["id"],
        data["name"],
        data["team_name"],
        "",
        data["version"],
        data["created_at"],
        data["updated_at"],
        *optional,
    )


class ManagerSource:
    """A deployment's secrets, from a manager.

    With a person's key it registers the deployment with the names that it
    reads, and gets a token for just these; with a deployment's token it uses
    that. `state` says how the watch stands, for those who look at a replica.
    """

    def __init__(self, client: ManagerClient, *, deployment: str, key: SecretValue) -> None:
        self._client = client
        self._deployment = deployment
        self._insecure_http = not client.url.startswith("https")
        self._given = key.reveal().startswith(b"gusset_tok_")
        self._prefix: str | None = None
        self._declared: set[str] = set()
        self._token: ManagerClient | None = client if self._given else None
        self._replica = tokens.token_hex(8)
        self._revision: str | None = None
        self._held: dict[str, int] = {}
        self._watching = False
        self._last_error: str | None = None

    @property
    def last_error(self) -> str | None:
        """Since when the manager has been away; None while it answers."""
        return self._last_error

    def read(self, names: Collection[str]) -> Mapping[str, Delivered]:
        """Those of `names` that the manager has.

        Raises:
            Denied: the token does not allow all of them, or is not good.
            Unreachable: the manager does not answer.
        """
        try:
            given = self._fetch(names)
        except NotSignedIn:
            if self._given:
                raise
            self._token = None  # it has expired, or was revoked: the person's key may get another
            given = self._fetch(names)
        found, origin = given["secrets"], f"the manager at {self._client.host}"
        self._revision = given["revision"]
        self._held = {name: each["version"] for name, each in found.items()}
        if self._watching:  # beside: what was read need not wait for it
            threading.Thread(target=self._acknowledge, name="gusset-acknowledge", daemon=True).start()
        return {
            name: Delivered(SecretValue(base64.b64decode(each["value"])), each["version"], origin)
            for name, each in found.items()
        }

    def _fetch(self, names: Collection[str]) -> dict[str, Any]:
        wanted = sorted(names)
        return self._authorized(wanted).call("POST", "/v1/deployment/secrets", {"names": wanted})

    def _authorized(self, names: Sequence[str]) -> ManagerClient:
        """A client with the deployment's token, which covers `names`."""
        if not self._given and (self._token is None or not self._declared.issuperset(names)):
            self._declared.update(names)
            until = (datetime.now(UTC) + TOKEN_LASTS).isoformat()
            body = {"name": self._deployment, "secrets": sorted(self._declared), "expires_at": until}
            made = self._client.call("POST", "/v1/deployments", body)
            self._prefix = made["prefix"]
            token = SecretValue(made["token"].encode())
            self._token = ManagerClient(self._client.url, token, insecure_http=self._insecure_http)
        assert self._token is not None  # noqa: S101  # given, or just made
        return self._token

    def watch(self, names: Collection[str], stop: threading.Event) -> Iterator[None]:
        """Yield when one of `names` may have changed; one long-lived request, begun again when it breaks."""
        backoff = Backoff(FIRST_RETRY)
        with _Closer(stop) as closer:
            while not stop.is_set():
                try:
                    for event in self._events(sorted(names), closer):
                        self._back()
                        backoff.reset()
                        if event["event"] == "changed":
                            yield
                except NotSignedIn as error:
                    self._lost(error.message)
                    if not self._given:
                        self._token = None
                except GussetError as error:
                    self._lost(error.message)
                if stop.wait(random.uniform(0, backoff.next_delay())):  # noqa: S311  # spreads replicas, hides nothing
                    return

    def _events(self, names: Sequence[str], closer: _Closer) -> Iterator[dict[str, Any]]:
        """The events of one stream, until it ends."""
        import httpx

        client = self._authorized(names)
        query = {"replica": self._replica} | ({"since": self._revision} if self._revision else {})
        timeout = httpx.Timeout(TIMEOUT, read=SILENCE)
        try:
            with client.http.stream(
                "GET",
                "/v1/deployment/changes",
                params=query,
                headers=client.authorization(),
                timeout=timeout,
            ) as answer:
                if answer.status_code != 200:
                    client.answer(answer.status_code, answer.read())
                closer.hold(answer)
                self._acknowledge()
                self._watching = True
                for line in answer.iter_lines():
                    yield json.loads(line)
        except (httpx.HTTPError, httpx.StreamError, ValueError, KeyError) as error:
            if not closer.stopped:
                raise client.unreachable(error) from None
        finally:
            closer.hold(None)

    def _acknowledge(self, *, stopped: bool = False) -> None:
        """Tell the manager which versions are held. Only for people to see: a failure costs nothing."""
        if self._token is None:
            return
        body = {"host": socket.gethostname()[:253], "versions": self._held, "stopped": stopped}
        with contextlib.suppress(GussetError):
            self._token.call("PUT", f"/v1/deployment/replicas/{self._replica}", body)

    def _lost(self, why: str) -> None:
        if self._last_error is None:
            self._last_error = f"{why}; not heard of since {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
            log.warning("Secrets are not watched for the moment, what is held stays: %s", why)

    def _back(self) -> None:
        if self._last_error is not None:
            self._last_error = None
            log.info("The manager at %s answers again.", self._client.host)

    def close(self) -> None:
        """Say that the replica has stopped, and give the token back."""
        self._watching = False
        self._acknowledge(stopped=True)
        if self._prefix is not None:
            with contextlib.suppress(GussetError):
                self._client.call("DELETE", f"/v1/tokens/{self._prefix}")
        for client in (self._token, self._client):
            if client is not None:
                client.close()


class _Closer:
    """Ends a stream that is waiting for its next line, once `stop` is set."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._lock = threading.Lock()
        self._socket: Any = None
        self._over = False
        self._thread = threading.Thread(target=self._run, name="gusset-watch-closer", daemon=True)

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def hold(self, answer: httpx.Response | None) -> None:
        """The stream that is to be ended, None for none."""
        with self._lock:
            self._socket = answer.extensions["network_stream"].get_extra_info("socket") if answer else None
        if self._stop.is_set():
            self._end()

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            if self._over:
                return
        self._end()

    def _end(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._socket is not None:
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # wakes who waits to receive

    def __enter__(self) -> _Closer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
