"""Starts the process that downloads, and receives its reports. For the supervisor."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gusset.errors import (
    ConfigInvalid,
    Conflict,
    Denied,
    GussetError,
    HostError,
    SecretsMissing,
    Unreachable,
)
from gusset.runtime.child_process import detach, translated_limits
from gusset.runtime.environment import child_environment
from gusset.runtime.output_pump import OutputPump
from gusset.secrets.masking import Masker
from gusset.weights.download import FetchRequest

_FROM_CONFIG = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
_ERRORS = {cls.__name__: cls for cls in (ConfigInvalid, Conflict, Denied, HostError, Unreachable)}
_MAX_LINE = 1 << 20
_LAST_OUTPUT = 2.0  # seconds to forward what a process that has ended has printed


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOptions:
    """How the process that downloads is run.

    `python` has gusset and the libraries of the sources. The output goes to
    `errors` (a file descriptor), masked. `debuggable`: debuggers may attach.
    """

    masker: Masker
    errors: int
    debuggable: bool
    python: str = sys.executable


def fetch_environment(config: Mapping[str, str]) -> dict[str, str]:
    """The environment of the process.

    Of the model's own variables it gets those that set where the hub's cache
    is, so that the model finds there what was downloaded.
    """
    own = {name: config[name] for name in _FROM_CONFIG if name in config}
    return child_environment() | own | {"HF_HUB_DISABLE_SYMLINKS_WARNING": "1", "PYTHONUNBUFFERED": "1"}


class FetchProcess:
    """One run of the process that downloads."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reports: IO[bytes],
        lifeline: IO[bytes],
        *,
        masker: Masker,
        pumps: list[OutputPump],
    ) -> None:
        self._process = process
        self._reports = reports
        self._lifeline = lifeline
        self._masker = masker
        self._pumps = pumps
        self._lock = threading.Lock()
        self._ended = False

    @classmethod
    def start(
        cls, request: FetchRequest, options: FetchOptions, environment: Mapping[str, str]
    ) -> FetchProcess:
        """Start it. It ends when this process does, however it ends.

        Raises:
            HostError: the system gives no more processes, files or threads. Nothing is left.
        """
        pumps: list[OutputPump] = []
        with translated_limits("the process that downloads"), contextlib.ExitStack() as own:
            with contextlib.ExitStack() as passed:
                request_r, request_w = _pipe(passed, own)
                report_r, report_w = _pipe(own, passed)
                lifeline_r, lifeline_w = _pipe(passed, own)
                descriptors = [each.fileno() for each in (request_r, report_w, lifeline_r)]
                command = [options.python, "-P", "-m", "gusset.weights.fetcher"]
                command += [str(number) for number in (*descriptors, int(options.debuggable))]
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=dict(environment),
                    pass_fds=descriptors,
                    process_group=0,  # Ctrl-C must not reach it: the supervisor decides when it ends
                )
            own.callback(_abandon, process)
            for pipe, channel in ((process.stdout, "stdout"), (process.stderr, "stderr")):
                pumps.append(OutputPump.start(detach(pipe), options.errors, options.masker.stream(channel)))
            with contextlib.suppress(BrokenPipeError), request_w:
                pickle.dump(request, request_w)
            own.pop_all()  # it has started, and ends by `kill`
        return cls(process, report_r, lifeline_w, masker=options.masker, pumps=pumps)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for_external_data(self) -> None:
        """Return when all external data is in the data folder. Blocks.

        Raises:
            GussetError: why a download failed.
        """
        self._receive("external_data")

    def wait(self) -> dict[str, Path]:
        """The folder for each mount, once everything is downloaded. Blocks. Raises GussetError."""
        match self._receive("done"):
            case {"folders": dict(folders)}:
                return {str(mount): Path(folder) for mount, folder in folders.items()}
        raise HostError("the process that downloads sent a malformed report")

    def kill(self) -> None:
        """End it at once, and wait for its end. What it has downloaded is kept."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            _kill(self._process)
            self._lifeline.close()
        self._reports.close()
        for pump in self._pumps:
            pump.join(_LAST_OUTPUT)

    def _receive(self, expected: str) -> dict[str, object]:
        try:
            report = json.loads(self._reports.readline(_MAX_LINE) or b"{}")
        except ValueError:
            report = {}
        match report:
            case {
                "event": "failed",
                "error": str(name),
                "message": str(message),
                "hint": str() | None as hint,
            }:
                raise _error(name, self._masker.mask_text(message), hint)
            case {"event": str(event)} if event == expected:
                return dict(report)
        raise HostError("the process that downloads has ended", hint="see what it printed above")


def fetch_all(
    request: FetchRequest, options: FetchOptions, environment: Mapping[str, str]
) -> dict[str, Path]:
    """Download everything, and return the folder for each mount. Blocks. Raises GussetError."""
    process = FetchProcess.start(request, options, environment)
    try:
        process.wait_for_external_data()
        return process.wait()
    finally:
        process.kill()


def _pipe(reader: contextlib.ExitStack, writer: contextlib.ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    """The two ends of a new pipe, each closed by its stack."""
    read, write = os.pipe()
    return reader.enter_context(os.fdopen(read, "rb")), writer.enter_context(os.fdopen(write, "wb"))


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and what it has started at once, and wait for its end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _abandon(process: subprocess.Popen[bytes]) -> None:
    """End a process whose output nobody forwards yet."""
    _kill(process)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _error(name: str, message: str, hint: str | None) -> GussetError:
    if name == SecretsMissing.__name__:
        return SecretsMissing(message, names=(), hint=hint)
    return _ERRORS.get(name, HostError)(message, hint=hint)
