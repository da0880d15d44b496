"""Signed checkpoints of the audit log, and the witness file that keeps them outside the database."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gusset.errors import HostError, UsageError
from gusset.portable import (
    BINARY,
    CAN_REPLACE_OPEN_FILES,
    CLOSE_ON_EXEC,
    NO_FOLLOW,
    lock_exclusively,
    write_private_file,
)
from gusset.vault.crypto.public_keys import PublicKeys

_MAX_BYTES = 262_144  # a longer witness file is cut down to its newest lines, except on Windows
_KEPT_LINES = 200
_NEWEST_BYTES = 4096  # several lines: writers add theirs in any order


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A signed statement that record `seq` had `hash`. `vault` is the vault's id.

    `key` is the number of the signing key, `keyring` the generation of the keyring; checkpoints
    of older releases, which had one signing key and one epoch, have neither.
    """

    vault: str
    seq: int
    at: str
    hash: bytes
    key: int | None = None
    keyring: int | None = None
    epoch: int = 1
    signature: bytes = b""

    def signed_bytes(self) -> bytes:
        """What the signature covers."""
        statement = [self.vault, self.seq, self.at, self.hash.hex()]
        if self.key is None:
            return json.dumps(["gusset checkpoint 1", *statement]).encode()
        return json.dumps(["gusset checkpoint 2", *statement, self.key, self.keyring, self.epoch]).encode()

    def is_signed(self, public_keys: PublicKeys) -> bool:
        """Whether the signing key for this record has signed the checkpoint."""
        try:
            key = public_keys.key_of(self.seq)
            if key is None or key.number != (self.key or 1):
                return False
            return key.verifies(self.signature, self.signed_bytes())
        except (TypeError, AttributeError):  # SQLite's columns hold any type
            return False

    def line(self) -> bytes:
        """The checkpoint as one line of the witness file."""
        data = {
            "vault": self.vault,
            "seq": self.seq,
            "at": self.at,
            "hash": self.hash.hex(),
            **({} if self.key is None else {"key": self.key, "keyring": self.keyring, "epoch": self.epoch}),
            "signature": base64.b64encode(self.signature).decode(),
        }
        return json.dumps(data).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Checkpoint:
        """Raises ValueError for a line that is not a checkpoint."""
        try:
            data = json.loads(line)
            return cls(
                vault=str(data["vault"]),
                seq=int(data["seq"]),
                at=str(data["at"]),
                hash=bytes.fromhex(data["hash"]),
                key=_number(data.get("key")),
                keyring=_number(data.get("keyring")),
                epoch=int(data.get("epoch", 1)),
                signature=base64.b64decode(data["signature"], validate=True),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("not a checkpoint") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointComparison:
    """Compares checkpoints with a log of that many `records`, and these `hashes` by their numbers.

    Without a log, `records` is None. `is_lost` says of an epoch and a record's number whether the
    log itself says that this record was lost.
    """

    public_keys: PublicKeys
    is_lost: Callable[[int, int], bool]
    records: int | None
    hashes: Mapping[int, bytes]

    def problems(self, source: str, points: Iterable[Checkpoint]) -> Iterator[str]:
        """What is wrong with checkpoints from `source`, or with the log if they are right."""
        for point in points:
            if (problem := self._problem(point)) is not None:
                yield f"{source}: {problem}"

    def _problem(self, point: Checkpoint) -> str | None:
        if point.vault != self.public_keys.vault:
            return f"the checkpoint of record {point.seq} is from another vault"
        if not point.is_signed(self.public_keys):
            return f"the checkpoint of record {point.seq} is not signed by this vault"
        if self.records is None or self.is_lost(point.epoch, point.seq):
            return None
        if point.seq > self.records:
            return (
                f"the log had {point.seq} records at {point.at} and has {self.records} now: "
                "it was cut short, or this is an older copy of the database"
            )
        if self.hashes.get(point.seq) != point.hash:
            return f"record {point.seq} is not the same as at {point.at}"
        return None


def _number(value: Any) -> int | None:
    return None if value is None else int(value)


class WitnessFile:
    """Keeps checkpoints outside the database, so that an older copy of the database is noticed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, checkpoint: Checkpoint) -> None:
        """Append and fsync. A failure is only logged: what the checkpoint covers is already committed."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = self._open_locked()
            try:
                size = os.fstat(fd).st_size
                torn = size > 0 and _last_byte(fd) != b"\n"  # a crash cut the last line short
                os.write(fd, b"\n" * torn + checkpoint.line())
                os.fsync(fd)
                if size > _MAX_BYTES and CAN_REPLACE_OPEN_FILES:
                    self._shorten()
            finally:
                os.close(fd)
        except OSError as error:
            _warn("cannot write the witness file %s: %s", self.path, error.strerror)

    def _open_locked(self) -> int:
        """Open and lock the file; start over when another process has replaced it meanwhile."""
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | CLOSE_ON_EXEC | NO_FOLLOW | BINARY
            fd = os.open(self.path, flags, 0o600)
            lock_exclusively(fd)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), self.path.stat()):
                    return fd
            os.close(fd)

    def _shorten(self) -> None:
        """Move the newest lines to a new file: a crash leaves either the old file or the new one."""
        lines = self.path.read_bytes().splitlines(keepends=True)[-_KEPT_LINES:]
        write_private_file(self.path, b"".join(lines))

    def newest(self, vault: str) -> Checkpoint | None:
        """The newest checkpoint of that vault; None when there is none near the end of the file."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _NEWEST_BYTES))
                lines = file.read().splitlines()
        except OSError:
            return None
        found = []
        for line in lines:
            with suppress(ValueError):  # the first line is cut off; `checkpoints` logs others
                found.append(Checkpoint.parse(line))
        mine = [point for point in found if point.vault == vault]
        return max(mine, key=lambda point: (point.epoch, point.seq), default=None)

    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints in the file; none when there is no file. Raises HostError."""
        try:
            return read_checkpoints(self.path)
        except FileNotFoundError:
            return []
        except OSError as error:
            reason = (error.strerror or "an error").lower()
            raise HostError(
                f"the witness file cannot be read: {reason}", hint=f"check {self.path} and its permissions"
            ) from None


def _last_byte(fd: int) -> bytes:
    os.lseek(fd, -1, os.SEEK_END)
    return os.read(fd, 1)


def read_checkpoints(path: Path) -> list[Checkpoint]:
    """The checkpoints in a witness file or a copy of one; other lines are logged and skipped."""
    found = []
    for line in path.read_bytes().splitlines():
        try:
            found.append(Checkpoint.parse(line))
        except ValueError:
            _warn("%s has a line that is not a checkpoint", path)
    return found


def given_checkpoints(path: Path) -> list[Checkpoint]:
    """The checkpoints in a file that a person named. Raises UsageError when it holds none."""
    found = read_checkpoints(path)
    if not found:
        raise UsageError(f"{path} contains no checkpoint", hint="use a copy of a witness file")
    return found


def _warn(message: str, *facts: object) -> None:
    import logging  # only for this: commands that set a secret would import it for nothing

    logging.getLogger("gusset.vault").warning(message, *facts)
