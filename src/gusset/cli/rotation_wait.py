"""`--wait`: a command that stores a version ends when no replica uses an older one any more."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from gusset.cli.app import App
from gusset.errors import NotFound, UsageError

if TYPE_CHECKING:
    from gusset.client.remote_secrets import RemoteSecrets
    from gusset.client.rotation import RotationStatus
    from gusset.secrets.info import SecretInfo

WAIT_SECONDS = 60
_SILENT_SECONDS = 1.0  # before progress is shown
_NAMED = 10  # replicas


class RotationWait:
    """Waits for the replicas of one rotation, and shows progress on a terminal."""

    def __init__(self, app: App, seconds: float) -> None:
        self._app = app
        self._seconds = seconds
        self._show_at = 0.0
        self._shown = -1

    @classmethod
    def of_options(cls, app: App, name: str, *, wait: bool, timeout: float | None) -> RotationWait | None:
        """What `--wait` and `--timeout` ask for, checked before anything is stored; None without `--wait`.

        Raises:
            UsageError: they cannot be used.
            Denied, Unreachable: the manager refuses to say how far a rotation is, or does not respond.
        """
        if not wait:
            if timeout is not None:
                raise UsageError("--timeout is how long --wait waits", hint="add --wait")
            return None
        if app.settings.manager is None:
            raise UsageError(
                "--wait needs a manager: processes that read the embedded vault do not report which "
                "version they use",
                hint="log in with `gusset login URL`; without a manager, a served model has a new value in "
                "a second, and its log says so",
            )
        with _remote_secrets(app) as secrets, suppress(NotFound):
            secrets.rotation(name)
        return cls(app, WAIT_SECONDS if timeout is None else timeout)

    def wait(self, info: SecretInfo) -> RotationStatus:
        """Wait for the version that was just stored; the state at the end.

        Prints which replicas were lost before.

        Raises:
            NotAcknowledged: see `wait_for_rotation`.
        """
        from gusset.client.rotation import wait_for_rotation

        version = info.version or 0
        self._show_at = time.monotonic() + _SILENT_SECONDS
        with _remote_secrets(self._app) as secrets:
            status = wait_for_rotation(
                lambda: secrets.rotation(info.name, version),
                secret_id=info.id,
                version=version,
                timeout=self._seconds,
                on_progress=self._show,
            )
        self._print_lost(status)
        return status

    def _print_lost(self, status: RotationStatus) -> None:
        """Name the replicas that nobody has waited for, since they were lost before."""
        for replica in status.lost_before[:_NAMED]:
            self._app.output.note(
                f"{replica.describe()}, was lost before version {status.version} was stored, and may "
                "still use an older one"
            )
        if (more := len(status.lost_before) - _NAMED) > 0:
            self._app.output.note(f"and so may {more} more replicas that were lost before it")

    def _show(self, status: RotationStatus) -> None:
        is_new = status.acknowledged != self._shown
        if is_new and time.monotonic() > self._show_at and sys.stderr.isatty():
            self._shown = status.acknowledged
            self._app.output.note(
                f"{status.acknowledged} of {len(status.replicas)} replicas have acknowledged it"
            )


@contextmanager
def _remote_secrets(app: App) -> Iterator[RemoteSecrets]:
    from gusset.client.remote_secrets import RemoteSecrets

    with app.manager() as client:
        yield RemoteSecrets(client)
