"""Where the root key comes from: a file, a systemd credential, or a command.

A file is read each time. What a command printed, and what a passphrase opened, is kept in
memory, since asking for it again may take long or need a person.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gusset.errors import HostError, RootKeyError, UsageError
from gusset.portable import HAS_POSIX_ACCOUNTS, real_path, signal_name, sync_folder, write_private_file
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault.crypto.root_key import (
    RootKey,
    encode_root_key,
    is_protected,
    new_root_key,
    open_protected,
    parse_root_key,
    protect,
)
from gusset.vault.file_permissions import credential_problem, file_problem

if TYPE_CHECKING:
    import subprocess

COMMAND_TIMEOUT = 20.0  # seconds
_MAX_BYTES = 4096

AskPassphrase = Callable[[str], SecretValue | None]  # for the file of that name; None without a terminal


class RootKeySource(Protocol):
    """Where the root key comes from."""

    @property
    def name(self) -> str:
        """The source, for messages."""

    @property
    def wrong_key_hint(self) -> str:
        """What to do when it has the root key of another vault."""

    @property
    def pending_file(self) -> Path:
        """Where a new root key is written first."""

    def read(self) -> RootKey:
        """The root key, perhaps as it was read before. Raises RootKeyError."""

    def read_again(self) -> RootKey:
        """The root key as the source has it now. Raises RootKeyError."""

    def create_if_missing(self) -> None:
        """Create the root key of a new vault, where gusset can."""

    def encode(self, key: RootKey) -> bytes:
        """The content of a file with `key`, protected as the present root key is."""


class FileSource:
    """A file that only its owner can read; perhaps protected by a passphrase.

    A symbolic link is followed, also when the file is replaced: whoever made the link keeps the key
    where it leads to.
    """

    def __init__(self, path: Path, passphrase: Passphrase) -> None:
        self.name = str(path)
        self.wrong_key_hint = "put this vault's root key there, or set GUSSET_ROOT_KEY_FILE to its path"
        self._path = path
        self._passphrase = passphrase
        self._opened: tuple[bytes, RootKey] | None = None  # a protected file's content, and its key

    @property
    def pending_file(self) -> Path:
        return pending_path(self._path)

    def read(self) -> RootKey:
        return self._parsed(self._content(), self.name)

    def read_again(self) -> RootKey:
        return self.read()

    def read_pending(self) -> RootKey | None:
        """The root key in `pending_file`; None when there is none, or it is not one."""
        try:
            return self._parsed(_read_private(self.pending_file), str(self.pending_file))
        except RootKeyError:
            return None

    def _content(self) -> bytes:
        return _read_private(self._path)

    def _parsed(self, data: bytes, name: str) -> RootKey:
        if not is_protected(data):
            return parse_root_key(data, name)
        if self._opened is None or self._opened[0] != data:
            self._opened = data, open_protected(data, self._passphrase.read(name), name)
        return self._opened[1]

    def create_if_missing(self) -> None:
        if not self._path.exists():
            passphrase = self._passphrase.from_file()
            key = new_root_key()
            write_private_file(self._path, protect(key, passphrase) if passphrase else encode_root_key(key))

    def encode(self, key: RootKey) -> bytes:
        if is_protected(self._content()):
            return protect(key, self._passphrase.read(self.name))
        return encode_root_key(key)

    def rewrite(self, key: RootKey, passphrase: SecretValue | None) -> None:
        """Write the present root key anew, protected by `passphrase` or by none. Raises HostError."""
        try:
            write_private_file(
                real_path(self._path), protect(key, passphrase) if passphrase else encode_root_key(key)
            )
        except OSError as error:
            raise HostError(f"{self._path} cannot be written: {error.strerror}") from None

    def install_pending(self) -> None:
        """Put the pending root key in place of the present one, atomically. Raises HostError."""
        path = real_path(self._path)
        try:
            self.pending_file.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            raise HostError(
                f"the new root key cannot be put in place: {error.strerror}",
                hint=f"for now, both root keys open the vault: move {self.pending_file} to {path}, "
                "then run `gusset key rotate --root` again",
            ) from None


class CredentialSource(FileSource):
    """A credential that systemd passes to the service, which gusset cannot replace."""

    def __init__(self, path: Path, passphrase: Passphrase, *, pending_file: Path) -> None:
        super().__init__(path, passphrase)
        self.wrong_key_hint = "pass this vault's root key as the credential gusset-root-key"
        self._pending_file = pending_file

    @property
    def pending_file(self) -> Path:
        return self._pending_file

    def _content(self) -> bytes:
        return _read_private(self._path, is_credential=True)

    def create_if_missing(self) -> None:
        """Nothing: systemd has the key."""


class CommandSource:
    """A command that prints the root key: a client of a key management service or a hardware module."""

    def __init__(self, command: str, environ: Mapping[str, str], pending_file: Path) -> None:
        """`command` is split as a shell does, and run without a shell. Raises UsageError."""
        self.name = "the output of the root key command"
        self.wrong_key_hint = "the root key command must print this vault's root key"
        self.pending_file = pending_file
        import shlex  # few vaults have a command

        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise UsageError(f"root_key_command cannot be split into words: {error}") from None
        if not self._words:
            raise UsageError("root_key_command is empty")
        self._environ = dict(environ)
        self._printed: RootKey | None = None

    def read(self) -> RootKey:
        return self._printed or self.read_again()

    def read_again(self) -> RootKey:
        self._printed = parse_root_key(self._output(), self.name)
        return self._printed

    def _output(self) -> bytes:
        import subprocess  # slow to import

        program = self._words[0]
        try:
            process = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environ,
                start_new_session=True,
            )
        except OSError as error:
            raise RootKeyError(f"the root key command {program} cannot be run: {error.strerror}") from None
        with process:
            try:
                output, errors = process.communicate(timeout=COMMAND_TIMEOUT)
            except BaseException as error:
                _kill(process)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                raise RootKeyError(
                    f"the root key command {program} did not end within {COMMAND_TIMEOUT:g} s"
                ) from None
        if (status := process.returncode) != 0:
            ended = f"failed with status {status}" if status > 0 else f"was ended by {signal_name(-status)}"
            raise RootKeyError(f"the root key command {program} {ended}", hint=_shown(errors))
        if not output.strip():
            raise RootKeyError(f"the root key command {program} printed nothing", hint=_shown(errors))
        return output[:_MAX_BYTES]

    def create_if_missing(self) -> None:
        """Nothing: whoever wrote the command has the key."""

    def encode(self, key: RootKey) -> bytes:
        return encode_root_key(key)


class Passphrase:
    """The passphrase of the root key's file: from a file, or from a person. It is not kept."""

    def __init__(self, file: Path | None, ask: AskPassphrase) -> None:
        self._file = file
        self._ask = ask

    def read(self, name: str) -> SecretValue:
        """The passphrase of the file `name`. Raises RootKeyError."""
        found = self.from_file() or self._ask(name)
        if found is None:
            raise RootKeyError(
                f"a passphrase protects {name}",
                hint="run this at a terminal, or set GUSSET_ROOT_KEY_PASSPHRASE_FILE",
            )
        return found

    def from_file(self) -> SecretValue | None:
        """The passphrase in the file that the settings name. Raises RootKeyError."""
        if self._file is None:
            return None
        return read_passphrase(self._file)


def read_passphrase(path: Path) -> SecretValue:
    """The passphrase in a file that others cannot read, without a final newline. Raises RootKeyError."""
    passphrase = _read_private(path, what="passphrase").removesuffix(b"\n").removesuffix(b"\r")
    if not passphrase:
        raise RootKeyError(f"the passphrase file {path} is empty")
    return SecretValue(passphrase)


def root_key_source(settings: Settings, ask_passphrase: AskPassphrase) -> RootKeySource:
    """The source that the settings name. Raises UsageError."""
    passphrase = Passphrase(settings.root_key_passphrase_file, ask_passphrase)
    file = settings.root_key_file
    pending = pending_path(file)
    if settings.root_key_command is not None:
        return CommandSource(settings.root_key_command, dict(settings.command_environ), pending)
    if settings.root_key_credential is not None:
        return CredentialSource(settings.root_key_credential, passphrase, pending_file=pending)
    return FileSource(file, passphrase)


def pending_path(path: Path) -> Path:
    """Where a new root key is written first: beside the file at `path`, or what a link there leads to."""
    path = real_path(path)
    return path.with_name(path.name + ".new")


def replaceable(source: RootKeySource) -> FileSource | None:
    """The source if gusset can replace its root key; None when a person must do it."""
    return source if isinstance(source, FileSource) and not isinstance(source, CredentialSource) else None


def write_pending(source: RootKeySource, key: RootKey) -> Path:
    """Write a new root key beside the present one. Raises HostError; nothing was changed then."""
    try:
        write_private_file(source.pending_file, source.encode(key))
    except OSError as error:
        raise HostError(
            f"the new root key cannot be written: {error.strerror}",
            hint=f"nothing was replaced; make {source.pending_file.parent} writable for your account",
        ) from None
    return source.pending_file


def _read_private(path: Path, *, what: str = "root key", is_credential: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            problem = (
                credential_problem(path, status)
                if is_credential
                else file_problem(path, status, private=True)
            )
            data = file.read(_MAX_BYTES)
    except FileNotFoundError:
        raise RootKeyError(
            f"there is no {what} at {path}",
            hint="restore it from a copy, or set GUSSET_ROOT_KEY_FILE; nothing else opens the vault",
        ) from None
    except OSError as error:
        raise RootKeyError(f"cannot read the {what} at {path}: {error.strerror}") from None
    if problem:
        raise RootKeyError(problem.message, hint=problem.hint)
    return data


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the command and what it has started, which would keep its output open."""
    if HAS_POSIX_ACCOUNTS:
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()


# A command may print the key where it should not: everything that looks like one is masked.
_LIKE_A_KEY = re.compile(r"[A-Za-z0-9+/_-]{32,}={0,2}")


def _shown(errors: bytes) -> str | None:
    """What a command printed on standard error, as a hint."""
    text = errors.decode("utf-8", "replace").strip()[-600:]
    return _LIKE_A_KEY.sub("***", text) or None
