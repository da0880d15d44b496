"""Runs uv as a program: its progress is shown, its last words are kept, and it ends with this process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from gusset.errors import HostError

# Runs in a small Python before uv: the kernel kills uv when the process that started it ends.
_UNTIL_PARENT_ENDS = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
_QUIET_SECONDS = 1.0
_ERROR = re.compile(rb"(?:^|[\r\n])(?:\x1b\[[0-9;?]*[A-Za-z])*error: ")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")


@dataclass(frozen=True, slots=True)
class Result:
    """How uv ended. `text` is what it wrote to standard error, `output` to standard output."""

    status: int
    text: str
    output: str = ""

    @property
    def message(self) -> str:
        """uv's error message: from its line `error:` on."""
        lines = self.text.replace("\r\n", "\n").replace("\r", "\n").splitlines()
        start = next((i for i, line in enumerate(lines) if line.startswith("error: ")), None)
        kept = lines[start:] if start is not None else lines[-20:]
        return "\n".join(line.rstrip() for line in kept).removeprefix("error: ").strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where uv's progress goes. `write` gets bytes; `mask` replaces secrets in a text.

    On a terminal uv draws its own bars. Otherwise its lines appear once it has
    worked for a second, so that a quick installation prints nothing.
    """

    write: Callable[[bytes], object] = lambda data: None
    terminal: int | None = None
    mask: Callable[[str], str] = field(default=lambda text: text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uv:
    """The program uv, with the variables of its process."""

    program: str
    environ: Mapping[str, str] = field(repr=False)
    progress: Progress = Progress()

    def run(
        self,
        *arguments: str,
        descriptors: Sequence[int] = (),
        environ: Mapping[str, str] | None = None,
    ) -> Result:
        """Run a command that shows its progress. It inherits these file descriptors."""
        variables = {**self.environ, **(environ or {})}
        if self.progress.terminal is None:
            return self._run_by_lines(arguments, descriptors, variables)
        return self._run_on_terminal(self.progress.terminal, arguments, descriptors, variables)

    def query(self, *arguments: str) -> Result:
        """Run a command that is quick, for its output."""
        with _host_error(self.program):
            done = subprocess.run(
                [self.program, *arguments],
                env=dict(self.environ),
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
        return Result(done.returncode, _text(done.stderr), _text(done.stdout))

    def _run_by_lines(
        self, arguments: Sequence[str], descriptors: Sequence[int], environ: Mapping[str, str]
    ) -> Result:
        started = time.monotonic()
        lines: list[bytes] = []
        shown = 0
        is_error = False
        with (
            _host_error(self.program),
            self._start(arguments, descriptors, environ, subprocess.PIPE) as process,
        ):
            assert process.stderr  # noqa: S101  # a pipe
            for line in process.stderr:
                lines.append(line)
                is_error = is_error or line.startswith(b"error: ")
                if not is_error and time.monotonic() - started > _QUIET_SECONDS:
                    for each in lines[shown:]:
                        self.progress.write(self.progress.mask(_text(each)).encode())
                    shown = len(lines)
        return Result(process.returncode, self.progress.mask(_text(b"".join(lines))))

    def _run_on_terminal(
        self, terminal: int, arguments: Sequence[str], descriptors: Sequence[int], environ: Mapping[str, str]
    ) -> Result:
        import fcntl  # not on Windows, where `gusset check` runs uv as well
        import termios

        read_end, write_end = os.openpty()
        with ExitStack() as stack:
            stack.callback(os.close, read_end)
            with suppress(OSError):
                fcntl.ioctl(
                    write_end, termios.TIOCSWINSZ, fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8))
                )
            with _host_error(self.program):
                process = self._start(arguments, descriptors, environ, write_end)
            os.close(write_end)
            data = self._show(read_end)
            process.wait()
        return Result(process.returncode, self.progress.mask(_text(bytes(data))))

    def _show(self, read_end: int) -> bytearray:
        """Copy uv's progress to the terminal until it ends, but not its error message."""
        data = bytearray()
        shown = 0
        with suppress(OSError):  # EIO: the other end was closed
            while chunk := os.read(read_end, 65536):
                data += chunk
                error = _ERROR.search(data)
                end = error.start() if error else len(data)
                if end > shown:
                    self.progress.write(bytes(data[shown:end]))
                    shown = end
        return data

    def _start(
        self, arguments: Sequence[str], descriptors: Sequence[int], environ: Mapping[str, str], errors: int
    ) -> subprocess.Popen[bytes]:
        command = [self.program, *arguments]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _UNTIL_PARENT_ENDS, str(os.getpid()), *command]
        return subprocess.Popen(
            command,
            env=dict(environ),
            cwd="/",  # so that uv reads the settings of no project
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=tuple(descriptors),
        )


def find_uv() -> str:
    """The program that was installed with gusset. Raises HostError."""
    import uv

    try:
        return os.fspath(uv.find_uv_bin())
    except FileNotFoundError:
        raise HostError("the program uv is not installed", hint="pip install --force-reinstall uv") from None


_FROM_OTHER_ENVIRONMENTS = (
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "PYTHONPATH",
    "PYTHONHOME",
    "UV_PROJECT_ENVIRONMENT",
)


def uv_environment(environ: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """The variables for uv: this process's, and settings translated from pip's.

    As with pip, and in Truss's builds, the best version of all indexes is taken.
    """
    kept = {name: value for name, value in environ.items() if name not in _FROM_OTHER_ENVIRONMENTS}
    defaults = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    return {**defaults, **settings, **kept, "UV_COLOR": "never", "NO_COLOR": "1", "GIT_TERMINAL_PROMPT": "0"}


def memory_file(name: str, content: bytes) -> int:
    """A file that is only in memory; uv reads it as `/proc/self/fd/N`."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    return descriptor


def path_of(descriptor: int) -> str:
    """The path of an inherited file descriptor, in the process that inherits it."""
    return f"/proc/self/fd/{descriptor}"


def _text(data: bytes) -> str:
    return _CONTROL.sub("", data.decode("utf-8", "replace"))


@contextmanager
def _host_error(program: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, PermissionError) as error:
        raise HostError(
            f"{Path(program).name} cannot be run: {error.strerror}", hint="pip install --force-reinstall uv"
        ) from None
