"""Carries a model folder to the nodes of a cluster, by Ray's Global Control Store.

Ray's own way, `working_dir`, keeps a package only while a process uses it: once the driver has ended and
the last replica died, no new one could start. The control store keeps what is put there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from ray.experimental import internal_kv

from gusset.errors import CheckFailed, HostError, ModelFailed, Problem
from gusset.portable import sync_file_system
from gusset.ray.plan import FolderOnNodes, ReplicaPlan, StoredFolder
from gusset.secrets.credentials import find_credentials
from gusset.trusted_folders import check_cache_folder

MAX_BYTES = 100 * 1024 * 1024
"""The limit for a folder's archive, which the control store keeps in memory."""

_NAMESPACE = "gusset"
_KEPT = 3  # archives of one deployment: replicas of the last version may still be replaced
_TIME = (1980, 1, 1, 0, 0, 0)  # of all files, so that the same folder gives the same digest
_NEVER = frozenset(
    {"__pycache__", ".git", ".hg", ".svn", ".venv", ".env", ".DS_Store", ".pytest_cache", ".mypy_cache"}
)
_SEARCHED = 1024 * 1024  # bytes of a file; larger ones are weights, not code


def store_folder(folder: Path, name: str) -> StoredFolder:
    """Put the folder of this deployment into the control store, and drop its oldest archive.

    Raises:
        CheckFailed: a file contains a credential.
        HostError: the folder cannot be read, or is too large.
    """
    archive = pack(folder)
    digest = hashlib.sha256(archive).hexdigest()
    internal_kv._internal_kv_put(_key(digest), archive, namespace=_NAMESPACE)
    _drop_old(name, digest)
    return StoredFolder(digest=digest)


def _drop_old(name: str, digest: str) -> None:
    prefix = "deployment:"
    listed = {
        key: json.loads(internal_kv._internal_kv_get(key, namespace=_NAMESPACE) or b"[]")
        for key in internal_kv._internal_kv_list(prefix, namespace=_NAMESPACE)
    }
    own = f"{prefix}{name}".encode()
    digests = [digest, *(each for each in listed.get(own, ()) if each != digest)]
    listed[own] = digests[:_KEPT]
    internal_kv._internal_kv_put(own, json.dumps(listed[own]).encode(), namespace=_NAMESPACE)
    for old in digests[_KEPT:]:
        if not any(old in kept for kept in listed.values()):
            internal_kv._internal_kv_del(_key(old), namespace=_NAMESPACE)


def _key(digest: str) -> bytes:
    return f"folder:{digest}".encode()


def pack(folder: Path) -> bytes:
    """The folder as a zip archive; the same files give the same bytes.

    Left out are caches, what version control keeps, and `.env`.

    Raises:
        CheckFailed: a file contains a credential.
        HostError: the folder cannot be read or is too large, or a file's name is not UTF-8.
    """
    buffer, problems = io.BytesIO(), list[Problem]()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in _files(folder):
            path = file.relative_to(folder)
            try:
                str(path).encode()  # an archive has names in UTF-8 only
                content, mode = file.read_bytes(), file.stat().st_mode
            except UnicodeEncodeError:
                raise HostError(f"the name of {file} is not UTF-8", hint="rename the file") from None
            except OSError as error:
                raise HostError(f"{file} cannot be read: {error.strerror}") from None
            problems += _credentials(path, content)
            info = zipfile.ZipInfo(str(path), _TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (stat.S_IFREG | (0o755 if mode & 0o100 else 0o644)) << 16
            archive.writestr(info, content)
            if buffer.tell() > MAX_BYTES:
                raise HostError(
                    f"{folder} is too large for Ray's control store: over {MAX_BYTES >> 20} MiB",
                    hint="let gusset download large files (`weights` in config.yaml), or put the folder "
                    "on every node and deploy it with --on-nodes",
                )
    if problems:
        raise CheckFailed(f"{folder} contains credentials, and is not sent to the cluster", problems=problems)
    return buffer.getvalue()


def _files(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise HostError(f"{error.filename} cannot be read: {error.strerror}") from None

    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if name not in _NEVER)
        for name in sorted(files):
            path = Path(parent, name)
            if name not in _NEVER and path.is_file():
                yield path


def _credentials(path: Path, content: bytes) -> Iterator[Problem]:
    if len(content) > _SEARCHED:
        return
    text = content.decode("utf-8", "replace")
    for match in find_credentials(text):
        yield Problem(
            f"this looks like {match.kind}",
            "store it with `gusset secret set`, and declare its name under `secrets:`",
            file=str(path),
            line=text.count("\n", 0, match.start) + 1,
            code="credential",
        )


def find_folder(plan: ReplicaPlan, cache: Path) -> Path:
    """The plan's model folder on this node, unpacked into `cache` if it is in the control store.

    Raises:
        ModelFailed: it is in neither.
        HostError: other accounts can write to the cache, or it cannot be created.
    """
    if isinstance(plan.folder, FolderOnNodes):
        folder = Path(plan.folder.path)
        if not folder.is_dir():
            raise ModelFailed(f"this node has no folder {folder}", hint="put it on every node")
        return folder
    digest = plan.folder.digest
    target = _prepare(cache) / digest
    if not target.is_dir():
        archive = internal_kv._internal_kv_get(_key(digest), namespace=_NAMESPACE)
        if archive is None or hashlib.sha256(archive).hexdigest() != digest:
            raise ModelFailed(
                f"Ray's control store has lost the folder of {plan.name}", hint="deploy it again"
            )
        _unpack(archive, target)
    return target


def _prepare(cache: Path) -> Path:
    """The cache's folder for what is unpacked, where others cannot put code that replicas then run."""
    folder = cache / "ray"
    try:
        for each in (cache, folder):
            each.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise HostError(f"cannot create the folder {error.filename}: {error.strerror}") from None
    check_cache_folder(folder, own=[cache])
    return folder


def _unpack(archive: bytes, target: Path) -> None:
    """Unpack all or nothing: other replicas may do the same at this moment."""
    attempt = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            for info in opened.infolist():
                Path(opened.extract(info, attempt)).chmod(info.external_attr >> 16 & 0o755)
        sync_file_system(attempt)  # after a power failure, a folder that has its name has all its files
        attempt.rename(target)
    except OSError as error:
        shutil.rmtree(attempt, ignore_errors=True)
        if not target.is_dir():
            raise ModelFailed(f"{target} cannot be written: {error.strerror}") from None
