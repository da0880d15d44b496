"""Differences between Linux, macOS and Windows: locks, flags and durable renames of files, names of signals.

Windows has no numbered accounts, no file modes, and no symbolic links that
ordinary accounts can create, so these are not checked there.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from pathlib import Path

NO_FOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
CLOSE_ON_EXEC: int = getattr(os, "O_CLOEXEC", 0)
BINARY: int = getattr(os, "O_BINARY", 0)  # else Windows writes each newline as two bytes

CAN_REPLACE_OPEN_FILES = os.name != "nt"
HAS_POSIX_ACCOUNTS = hasattr(os, "geteuid")

_LOCKED_BYTE = 1 << 30  # beyond any content, since on Windows no other process can read a locked byte


def accessible_to_others(mode: int) -> bool:
    """Whether other accounts can access a file of this mode. Always false on Windows."""
    return HAS_POSIX_ACCOUNTS and bool(mode & 0o077)


def real_path(path: Path) -> Path:
    """The absolute path without symbolic links; links that lead to each other stay.

    `Path.resolve` raises RuntimeError for those before Python 3.13.
    """
    return Path(os.path.realpath(path))


_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_disk_full(error: OSError) -> bool:
    """Whether a write failed because the disk, the account's quota or the largest file size is used up."""
    return error.errno in _DISK_FULL


def signal_name(number: int) -> str:
    """`SIGTERM`; `signal 40` for a real-time signal, most of which have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def lock_exclusively(fd: int) -> None:
    """Wait for the exclusive lock of an open file. Closing `fd` releases it."""
    try:
        import fcntl  # not on Windows
    except ModuleNotFoundError:
        msvcrt = importlib.import_module("msvcrt")
        while True:
            os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
            try:
                msvcrt.locking(fd, msvcrt.LK_LOCK, 1)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EDEADLK):
                    raise
            else:
                return
            # Windows has given up after ten seconds: try again
    else:
        fcntl.flock(fd, fcntl.LOCK_EX)


def make_private(fd: int) -> None:
    """Set the mode of an open file to 0600, where files have modes."""
    if hasattr(os, "fchmod"):
        os.fchmod(fd, 0o600)


def write_private_file(path: Path, data: bytes) -> None:
    """Write a file that only its owner can access. A crash leaves either the old file or the new one.

    Its folder is created if necessary, with mode 0700.

    Raises:
        OSError: the file cannot be written; the old one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = path.with_name(path.name + ".new")
    scratch.unlink(missing_ok=True)  # left by a crash, or created by an attacker: never write into it
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | CLOSE_ON_EXEC | NO_FOLLOW | BINARY
    fd = os.open(scratch, flags, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        make_private(fd)
        os.fsync(fd)
    scratch.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename in it survives a power failure. Windows cannot open folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file_system(folder: Path) -> None:
    """Write everything of the file system of `folder` to the disk, so that it survives a power failure.

    For a folder with many files, where an fsync of each would take much longer.
    """
    import ctypes  # takes milliseconds, and few commands need it

    syncfs = getattr(ctypes.CDLL(None), "syncfs", None) if os.name == "posix" else None
    if syncfs is None:  # not Linux
        getattr(os, "sync", lambda: None)()
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if syncfs(fd):
            os.sync()
    finally:
        os.close(fd)


def return_freed_memory() -> None:
    """Give freed memory back to the system, where glibc keeps it. Does nothing elsewhere."""
    if sys.platform != "linux":
        return
    import ctypes  # takes milliseconds, and few commands need it

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def file_system_type(path: Path) -> int:
    """The magic number of statfs(2) for the file system of `path`; 0 where it is not known."""
    if sys.platform != "linux":
        return 0
    import ctypes  # takes milliseconds, and few commands need it

    statfs = getattr(ctypes.CDLL(None), "statfs", None)
    found = (ctypes.c_long * 64)()  # larger than the structure, which begins with the number
    if statfs is None or statfs(os.fsencode(path), found):
        return 0
    return int(found[0]) & 0xFFFF_FFFF


_IN_MEMORY = {0x0102_1994, 0x8584_58F6}  # the numbers of tmpfs and ramfs


def is_in_memory(path: Path) -> bool:
    """Whether `path` is on a tmpfs or ramfs; False where that is not known."""
    return file_system_type(path) in _IN_MEMORY


def mount_type(path: Path) -> str:
    """The type of the mount that `path` is in, such as `ext4` or `fuse.sshfs`; "" where it is not known."""
    try:
        device, mounts = path.stat().st_dev, Path("/proc/self/mountinfo").read_text(errors="replace")
    except OSError:
        return ""
    wanted, found = f"{os.major(device)}:{os.minor(device)}", ""
    for line in mounts.splitlines():  # see proc(5): the fields after the separator begin with the type
        before, _, after = line.partition(" - ")
        if before.split(" ", 3)[2] == wanted:
            found = after.partition(" ")[0]
    return found


def account_name() -> str:
    """The name of the account that runs this process. Not from `$LOGNAME`, which any process can set."""
    if not HAS_POSIX_ACCOUNTS:
        return os.getlogin()
    import pwd  # not on Windows

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container, a user may have no name
        return f"uid {os.getuid()}"
