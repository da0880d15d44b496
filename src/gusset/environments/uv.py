"""Runs uv as a program: its progress is shown, its error message is kept, and it ends with this process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from gusset.environments.terminal_output import TerminalOutput
from gusset.errors import HostError
from gusset.printable import printable_lines

# Runs in a small Python before uv: the kernel kills uv, and the builds that it has started, when the
# other end of a pipe closes. As `runtime.process.die_with_pipe`, but the pipe stays open in uv.
_UNTIL_PIPE_CLOSES = """
import fcntl, os, select, sys
pipe = int(sys.argv[1])
fcntl.fcntl(pipe, fcntl.F_SETOWN, -os.getpgrp())
fcntl.fcntl(pipe, 10, 9)  # F_SETSIG, SIGKILL
fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
poll = select.poll()
poll.register(pipe, 0)
if not poll.poll(0):
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
class ProgressSink:
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
    progress: ProgressSink = ProgressSink()

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
        with self._started(arguments, descriptors, environ, subprocess.PIPE) as process:
            assert process.stderr  # noqa: S101  # a pipe
            for line in process.stderr:
                lines.append(line)
                is_error = is_error or line.startswith(b"error: ")
                if not is_error and time.monotonic() - started > _QUIET_SECONDS:
                    for each in lines[shown:]:
                        text = _text(each).replace("\r", "")
                        self.progress.write(printable_lines(self.progress.mask(text)).encode())
                    shown = len(lines)
            status = process.wait()
        return Result(status, self.progress.mask(_text(b"".join(lines))))

    def _run_on_terminal(
        self, terminal: int, arguments: Sequence[str], descriptors: Sequence[int], environ: Mapping[str, str]
    ) -> Result:
        import fcntl  # not on Windows, where `gusset check` runs uv as well
        import termios

        read_end, write_end = os.openpty()
        with os.fdopen(read_end, "rb", buffering=0), os.fdopen(write_end, "wb", buffering=0) as own_end:
            with suppress(OSError):
                size = fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8))
                fcntl.ioctl(write_end, termios.TIOCSWINSZ, size)
            with self._started(arguments, descriptors, environ, write_end) as process:
                own_end.close()  # so that reading ends when uv does
                data = self._show(read_end)
                status = process.wait()
        return Result(status, self.progress.mask(_text(bytes(data))))

    def _show(self, read_end: int) -> bytearray:
        """Copy uv's progress to the terminal until it ends, but not its error message."""
        data, output = bytearray(), TerminalOutput()
        shown = 0
        with suppress(OSError):  # EIO: the other end was closed
            while chunk := os.read(read_end, 65536):
                data += chunk
                error = _ERROR.search(data)
                end = error.start() if error else len(data)
                if end > shown:
                    self.progress.write(output.pass_on(bytes(data[shown:end])))
                    shown = end
        return data

    @contextmanager
    def _started(
        self, arguments: Sequence[str], descriptors: Sequence[int], environ: Mapping[str, str], errors: int
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Start uv in a process group of its own. At the end of the context nothing of it is left."""
        command = [self.program, *arguments]
        lifeline_r, lifeline_w = os.pipe()
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _UNTIL_PIPE_CLOSES, str(lifeline_r), *command]
        with os.fdopen(lifeline_w, "wb") as lifeline:
            with os.fdopen(lifeline_r, "rb"), _host_error(self.program):
                process = subprocess.Popen(
                    command,
                    env=dict(environ),
                    cwd="/",  # so that uv reads the settings of no project
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    pass_fds=(*descriptors, lifeline_r),
                    process_group=0,  # Ctrl-C reaches this process, which then ends it
                )
            with process:  # waits for its end, however the context ends
                try:
                    yield process
                finally:
                    lifeline.close()


def find_uv() -> str:
    """The program that was installed with gusset. Raises HostError."""
    import uv  # an image of `gusset build` does not have it

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
