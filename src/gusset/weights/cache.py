"""The cache of downloaded files: stored once by their content, shared by all starts of this account.

In the cache's folder:

    files/HASH      a downloaded file, named by its SHA-256; read-only
    index/KEY       which file a source had last: its hash, size and validator
    partial/KEY     a download that is not complete yet; the next start goes on from there
    folders/HASH    the files of one source as a folder: hard links to `files`; else copies, listed in `index`
    mounts/KEY      which folder the path of a mount links to
    lock/KEY        locked while a process downloads from that source, or a server uses that mount
    in-use          locked while a server runs that uses what is here

KEY is the SHA-256 of a source's name. The modification time of a source's entry in
`index`, or of a folder, is when it was last used.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gusset.errors import HostError
from gusset.portable import CLOSE_ON_EXEC, NO_FOLLOW, is_disk_full, sync_folder, write_private_file
from gusset.trusted_folders import check_cache_folder

_FOLDERS = ("files", "index", "partial", "folders", "mounts", "lock")


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedFile:
    """A file in the cache. `validator` is its ETag or date at the source, if it has one."""

    path: Path
    size: int
    sha256: str
    validator: str | None = None


class WeightsCache:
    """The files that were downloaded, and those that are being downloaded."""

    def __init__(self, root: Path) -> None:
        """`root` is a folder that `open` has made."""
        self.root = root

    @classmethod
    def open(cls, root: Path) -> WeightsCache:
        """The cache in this folder, which is created if necessary.

        Raises:
            HostError: it cannot be created, or other accounts can write to it or to a folder above it.
        """
        try:
            for folder in (root, *(root / name for name in _FOLDERS)):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise HostError(f"cannot create the folder {error.filename}: {error.strerror}") from None
        check_cache_folder(root)
        return cls(root)

    def hold(self) -> int:
        """Keep everything in the cache until the returned descriptor is closed.

        Waits while another process removes what is not used.
        """
        descriptor = os.open(self.root / "in-use", os.O_RDWR | os.O_CREAT | CLOSE_ON_EXEC | NO_FOLLOW, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return descriptor

    @contextmanager
    def lock(self, source: str) -> Iterator[None]:
        """Lock this source; waits while another process downloads from it."""
        with self._path("lock", source).open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def partial(self, source: str) -> Path:
        """The path of the incomplete download of this source; it may not exist."""
        return self._path("partial", source)

    def find(self, source: str) -> CachedFile | None:
        """The file that the source had last, unless it is not intact any more."""
        match self.read_entry(source):
            case {
                "sha256": str(sha256),
                "size": int(size),
                "modified": int(modified),
                "validator": str() | None as validator,
            }:
                path = self.root / "files" / sha256
            case _:
                return None
        with contextlib.suppress(OSError):
            status = path.stat()
            if status.st_size == size and (status.st_mtime_ns == modified or hash_of(path) == sha256):
                return CachedFile(path=path, size=size, sha256=sha256, validator=validator)
            path.unlink()  # somebody has written to it
        return None

    def add(self, source: str, sha256: str, *, validator: str | None) -> CachedFile:
        """Make the complete partial download of the source, which has this hash, a file of the cache."""
        partial, path = self.partial(source), self.root / "files" / sha256
        partial.chmod(0o444)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        if path.exists() and hash_of(path) == sha256:
            partial.unlink()
        else:
            partial.replace(path)
            sync_folder(path.parent)
        status = path.stat()
        entry = {"sha256": sha256, "size": status.st_size, "modified": status.st_mtime_ns}
        self.write_entry(source, entry | {"validator": validator})
        return CachedFile(path=path, size=status.st_size, sha256=sha256, validator=validator)

    def read_entry(self, source: str) -> dict[str, object]:
        """What the index has of the source; empty if it has nothing."""
        path = self._path("index", source)
        try:
            entry = json.loads(path.read_bytes())
            _stamp(path)
        except (OSError, ValueError):
            return {}
        return entry if isinstance(entry, dict) else {}

    def write_entry(self, source: str, entry: Mapping[str, object]) -> None:
        """Replace what the index has of the source."""
        with self.lock(f"entry {source}"):
            write_private_file(self._path("index", source), json.dumps(entry).encode())

    def folder(self, files: Mapping[str, CachedFile]) -> Path:
        """A folder with these files, by their relative paths, which must be safe; see `is_safe_name`."""
        listing = "".join(f"{name}\0{files[name].sha256}\n" for name in sorted(files))
        folder = self.root / "folders" / hashlib.sha256(listing.encode()).hexdigest()
        if not folder.is_dir() or self._missing(folder, files):
            with self.lock(folder.name):
                try:
                    self._complete(folder, files)
                except (FileExistsError, IsADirectoryError, NotADirectoryError):
                    shutil.rmtree(folder)  # something else is in the place of a file or of its folder
                    self._complete(folder, files)
        _stamp(folder)
        return folder

    def _missing(self, folder: Path, files: Mapping[str, CachedFile]) -> list[str]:
        """The files that are not in the folder, or not as they are in the cache now."""
        copied = self.read_entry(_copies_in(folder))
        return [name for name, file in files.items() if not _is_same(folder / name, file, copied.get(name))]

    def _complete(self, folder: Path, files: Mapping[str, CachedFile]) -> None:
        """Put what is missing into the folder. All else stays as it is: servers may use it."""
        new, copied = self.partial(folder.name), self.read_entry(_copies_in(folder))
        folder.mkdir(exist_ok=True)
        for name in self._missing(folder, files):
            source, target = files[name].path, folder / name
            modified = source.stat().st_mtime_ns
            new.unlink(missing_ok=True)
            is_link = link_or_copy(source, new)
            target.parent.mkdir(parents=True, exist_ok=True)
            new.replace(target)
            if not is_link:
                sync_folder(target.parent)
                copied[name] = modified
                self.write_entry(_copies_in(folder), copied)

    def plain_folder(self, snapshot: Path) -> Path:
        """A folder with the files that the symbolic links in a hub's snapshot lead to."""
        files = {}
        for path in snapshot.rglob("*"):
            if path.is_file():
                file = path.resolve()
                # The name is the hub's hash of the content.
                found = CachedFile(path=file, size=file.stat().st_size, sha256=f"hub {file.name}")
                files[str(path.relative_to(snapshot))] = found
        return self.folder(files)

    def mount_record(self, location: str) -> Path:
        """The file with the target of the link at this path; with two while it is being changed."""
        return self._path("mounts", location)

    def mount_lock(self, location: str) -> Path:
        """The file that is locked while a server uses the link at this path."""
        return self._path("lock", f"mount {location}")

    def _path(self, folder: str, source: str) -> Path:
        return self.root / folder / hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


def _stamp(path: Path) -> None:
    """Record that this was used now."""
    with contextlib.suppress(OSError):
        os.utime(path)


def _copies_in(folder: Path) -> str:
    """The name in the index of this folder's copies: when each of the copied files had been changed."""
    return f"copies in {folder.name}"


def _is_same(path: Path, file: CachedFile, copied: object) -> bool:
    """Whether `path` is a link to the file, or a copy; `copied`: when the copied file had been changed."""
    try:
        found, source = path.stat(), file.path.stat()
    except OSError:
        return False
    return os.path.samestat(found, source) or (found.st_size, copied) == (file.size, source.st_mtime_ns)


def link_or_copy(file: Path, new: Path) -> bool:
    """Give `file` a second name; where that fails, make a copy, sync it, and return False.

    `new` must not exist.
    """
    try:
        new.hardlink_to(file)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(file, new)
        with new.open("rb") as copy:
            os.fsync(copy.fileno())
        return False
    return True


def is_safe_name(name: str) -> bool:
    """Whether a file of this name, which a server chose, stays in the folder that it is written to."""
    parts = name.split("/")
    return not ({"", ".", ".."} & set(parts) or "\0" in name or "\\" in name) and all(
        len(part.encode("utf-8", "surrogatepass")) <= 255 for part in parts
    )


def hash_of(file: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def open_partial(path: Path) -> int:
    """Open an incomplete download for reading and writing, which only this account can read."""
    return os.open(path, os.O_RDWR | os.O_CREAT | CLOSE_ON_EXEC | NO_FOLLOW, 0o600)


def disk_error(error: OSError, folder: Path) -> HostError:
    """The error of a write that failed."""
    if is_disk_full(error):
        return HostError(
            f"there is no space left in {folder}",
            hint="make room, and start again: the download resumes where it stopped",
        )
    return HostError(f"cannot write in {folder}: {error.strerror or type(error).__name__}")
