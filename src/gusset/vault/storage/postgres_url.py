"""URLs of PostgreSQL: which ones gusset accepts, and the hosts that they name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gusset.errors import UsageError

SCHEMES = ("postgresql://", "postgres://")

# Defaults that the URL can override. Keepalives and the TCP timeout detect a dead network.
_DEFAULTS = {
    "fallback_application_name": "gusset",
    "keepalives_idle": "10",
    "keepalives_interval": "3",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",
}
_WRITABLE = ("any", "read-write", "primary")
_EXAMPLE = "an example: postgresql://gusset@db.example.com/gusset?sslmode=verify-full"


@dataclass(frozen=True)
class PostgresAddress:
    """Where the database is. `hosts` has libpq's parameters for each host, in the order to try."""

    name: str  # for people: without user and password
    hosts: tuple[Mapping[str, str], ...] = field(repr=False)


def is_postgres(url: str) -> bool:
    """Whether `url` names a PostgreSQL database."""
    return url.startswith(SCHEMES)


def refuse_password(url: str) -> None:
    """Raises UsageError for a URL with a password: a command's arguments are seen by every account."""
    if is_postgres(url) and not {"password", "sslpassword"}.isdisjoint(_read(url)):
        raise UsageError(
            "the database's URL has a password, and other accounts can read a command's arguments",
            hint="put it into ~/.pgpass or a file that `passfile=` names, or set GUSSET_DATABASE",
        )


def parse(url: str) -> PostgresAddress:
    """Read a URL as libpq does.

    Raises:
        UsageError: it is not one, or names servers that cannot be written to.
    """
    found = _read(url)
    _check_target(found.get("target_session_attrs"))
    found = _DEFAULTS | found | {"client_encoding": "UTF8"}
    found.pop("connect_timeout", None)  # gusset's own deadlines are shorter
    hosts = _hosts(found)
    if len(hosts) > 1:  # the first one that responds may be a standby
        hosts = tuple({"target_session_attrs": "read-write"} | host for host in hosts)
    return PostgresAddress(_name(hosts), hosts)


def _read(url: str) -> dict[str, str]:
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        return {key: str(value) for key, value in conninfo_to_dict(url).items()}
    except ProgrammingError:  # its text may have the password
        raise UsageError(
            "the database's URL is not one that PostgreSQL's client reads", hint=_EXAMPLE
        ) from None


def _check_target(target: str | None) -> None:
    if target is not None and target not in _WRITABLE:
        raise UsageError(
            f"target_session_attrs={target} selects a server that cannot be written to",
            hint=f"use one of {', '.join(_WRITABLE)}",
        )


def _hosts(found: Mapping[str, str]) -> tuple[dict[str, str], ...]:
    """The parameters for each host of a list; a service file's own list is libpq's business."""
    lists = {key: found[key].split(",") for key in ("host", "hostaddr", "port") if key in found}
    count = max((len(values) for key, values in lists.items() if key != "port"), default=1)
    for key, values in lists.items():
        if len(values) not in (1, count) or (len(values) == 1 and count > 1 and key != "port"):
            raise UsageError(
                f"the database's URL has {count} hosts, but {len(values)} of {key}", hint=_EXAMPLE
            )
    common = {key: value for key, value in found.items() if key not in lists}
    return tuple(
        common | {key: values[min(index, len(values) - 1)] for key, values in lists.items()}
        for index in range(count)
    )


def _name(hosts: Sequence[Mapping[str, str]]) -> str:
    first = hosts[0]
    if "service" in first:
        return f"PostgreSQL's service {first['service']}"
    addresses = [host.get("host") or host.get("hostaddr") or "this machine" for host in hosts]
    addresses = [
        address + (f":{host['port']}" if host.get("port") else "")
        for address, host in zip(addresses, hosts, strict=True)
    ]
    return f"{first.get('dbname', 'a database')} on {', '.join(addresses)}"
