"""One run of `gusset agent`: fills the folder once the manager responds, and keeps it current."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeVar

from gusset.agent.folder import AgentFolder
from gusset.agent.systemd import notify
from gusset.backoff import Backoff
from gusset.cli.account import Account
from gusset.cli.app import App
from gusset.cli.change_command import ChangeCommand
from gusset.cli.command_process import Command, DirectCommand
from gusset.cli.command_run import RESTART, SILENCE, CommandRun, at_terminal, open_command
from gusset.cli.provided_secrets import ProvidedSecrets
from gusset.cli.signal_forwarding import (
    ENDING,
    ReceivedSignals,
    delayed,
    ending_by_exception,
    stop_this_process,
)
from gusset.cli.sources import manager_source, read_all
from gusset.client.manager_source import ManagerSource
from gusset.errors import NotFound, Unreachable
from gusset.runtime.declared_secrets import Values
from gusset.runtime.hit_reporter import HitReporter
from gusset.runtime.logs import log_to_stderr
from gusset.secrets.masking import Masker

if TYPE_CHECKING:
    from gusset.cli.agent import AgentOptions

T = TypeVar("T")
log = logging.getLogger("gusset")

_FIRST_RETRY, _LONGEST_RETRY = 0.5, 30.0  # seconds


def run(app: App, options: AgentOptions) -> int:
    """Run the agent to its end; its exit status.

    Raises:
        UsageError, HostError, Conflict: the folder or a command cannot be used.
        NotFound, SecretsMissing: the deployment is not registered, or a secret has no value.
        Denied: the manager refuses.
    """
    # Not for the commands that the agent starts: they are not the service that reports to systemd.
    notify_socket = os.environ.pop("NOTIFY_SOCKET", None)
    masker = Masker()
    with ExitStack() as processes:  # the forked ones, which must not have values, and the command
        account = Account.start(app, secrets_dir=None)
        assert account is not None  # noqa: S101  # the command has checked that there is a manager
        processes.callback(account.close)
        process = processes.enter_context(open_command(options.command, masker)) if options.command else None
        on_change = DirectCommand(options.on_change, masker, has_input=False) if options.on_change else None
        at_raw_terminal = process is not None and at_terminal()
        log_to_stderr(
            readable=sys.stderr.isatty(), mask=masker.mask_text, line_end="\r\n" if at_raw_terminal else "\n"
        )
        processes.enter_context(ending_by_exception())
        agent = _Agent(app, options, masker, notify_socket=notify_socket)
        status = agent.run(account, process, on_change)
        if process is not None:
            process.drain(SILENCE)  # a signal ends the agent from here on
    return status if status >= 0 else 128 - status


class _Agent:
    """The agent of one folder."""

    def __init__(self, app: App, options: AgentOptions, masker: Masker, *, notify_socket: str | None) -> None:
        self._app = app
        self._options = options
        self._masker = masker
        self._notify_socket = notify_socket

    def run(self, account: Account, process: Command | None, on_change: Command | None) -> int:
        """Fill the folder, follow changes, and remove the files; the exit status, negative for a signal."""
        with ExitStack() as sources, ExitStack() as files:  # the files are removed first
            folder = files.enter_context(self._open_folder())
            before = folder.generation
            names = self._names(account)
            source = _when_reachable(
                lambda: sources.enter_context(
                    manager_source(self._app, account, self._options.deployment, names)
                )
            )
            account.close()
            secrets = ProvidedSecrets(
                folder,
                self._masker,
                files=names,
                variables={},
                held=self._app.held,
                restarts=process is not None and self._options.signal is None,
            )
            provided = self._fill(secrets, source)
            if self._options.once:
                self._report_ready(provided)
                return 0
            with ReceivedSignals.open() as signals:  # before threads, which inherit the blocked signals
                with self._following(
                    secrets, source, on_change, replaced=before not in (None, folder.generation)
                ):
                    self._report_ready(provided)
                    if process is None:
                        _wait_for_end(signals)
                        status = 0
                    else:
                        change = self._options.signal or RESTART
                        status = CommandRun(process, secrets, change).run(signals)
                    notify(self._notify_socket, "STOPPING=1")
                files.close()
                sources.close()
                signals.discard()  # a second SIGTERM changes nothing
        return status

    @contextmanager
    def _open_folder(self) -> Iterator[AgentFolder]:
        folder = AgentFolder.open(self._options.folder)
        try:
            yield folder
        finally:
            with delayed():
                if not (self._options.keep_files or self._options.once):
                    folder.empty()
                folder.close()

    def _names(self, account: Account) -> Sequence[str]:
        """The secrets to provide: those that were chosen, or all that the deployment declares."""
        deployment, chosen = self._options.deployment, self._options.names
        try:
            declared = _when_reachable(lambda: account.declared_names(deployment))
        except NotFound:
            if not chosen:
                raise NotFound(
                    f"there is no deployment {deployment}",
                    hint="name its secrets with --secret NAME, or create a token for it: "
                    f"gusset token create --deployment {deployment} --secrets NAME,NAME",
                ) from None
            return chosen
        return chosen or declared

    def _fill(self, secrets: ProvidedSecrets, source: ManagerSource) -> Sequence[str]:
        """Put the values into the folder; returns the names that have one."""
        names, allow_missing = secrets.names, self._options.allow_missing
        may_be_missing = names if "all" in allow_missing else allow_missing
        values: Values = {}
        if names:
            values = _when_reachable(lambda: read_all(source, names, allow_missing=may_be_missing))
        secrets.provide(values)
        return sorted(values)

    @contextmanager
    def _following(
        self, secrets: ProvidedSecrets, source: ManagerSource, on_change: Command | None, *, replaced: bool
    ) -> Iterator[None]:
        """Keep the folder current within the context, and run the command of --on-change.

        `replaced`: the folder had other values before, of an agent that ran earlier.
        """
        with ExitStack() as running:
            request = None
            if on_change is not None:
                changes = ChangeCommand(on_change, secrets.environment)
                changes.start()
                running.callback(changes.stop)
                request = changes.request
                if replaced:
                    changes.request()
            running.callback(HitReporter.start(self._masker.hits, source).stop)
            running.enter_context(secrets.following(source, request))
            yield

    def _report_ready(self, names: Sequence[str]) -> None:
        """Log that the folder is complete, and report it to systemd and to whoever reads standard output."""
        folder = str(self._options.folder)
        count = "1 secret" if len(names) == 1 else f"{len(names)} secrets"
        log.info("Ready: %s of %s in %s.", count, self._options.deployment, folder)
        notify(self._notify_socket, "READY=1")
        if self._options.command is None:
            self._app.output.result({"dir": folder, "secrets": list(names)})


def _when_reachable(request: Callable[[], T]) -> T:
    """The result of `request`, which is repeated while the manager is unreachable."""
    backoff, waiting = Backoff(_FIRST_RETRY, _LONGEST_RETRY), False
    while True:
        try:
            result = request()
        except Unreachable as error:
            if not waiting:
                log.warning("Waiting for the manager: %s", error.message)
            waiting = True
            # The jitter keeps agents from returning all at once.
            jitter = random.uniform(0.5, 1.0)  # noqa: S311  # nothing secret
            time.sleep(max(error.retry_after or 0.0, jitter * backoff.next_delay()))
        else:
            if waiting:
                log.info("The manager responds.")
            return result


def _wait_for_end(signals: ReceivedSignals) -> None:
    """Return when this process is to end."""
    while True:
        received = signals.wait(None)
        if received is not None and received.si_signo in ENDING:
            return
        if received is not None and received.si_signo == signal.SIGTSTP:
            stop_this_process()
