"""The manager's background work: refusal sums, checkpoints, reports, leases, overlaps, a write probe."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from gusset.errors import GussetError, Unreachable, VaultError
from gusset.manager.bugs import log_bug
from gusset.manager.executors import Executors
from gusset.vault.deadline import within
from gusset.vault.wiring import Vault

log = logging.getLogger("gusset.manager")

SUMS_EVERY = 5.0  # seconds
SIGN_AFTER = 0.75  # seconds: later than batches add checkpoints, and within a second of each record
_SIGN_CHECK_EVERY = 0.15
_SIGN_AFTER_FAILURE = 1.0
REPORT_EVERY = 5.0
RENEWALS_EVERY = 5.0  # seconds at most, of leases
REPLICA_REPORTS_EVERY = 0.25  # seconds
OVERLAPS_EVERY = 0.5  # seconds
PROBE_EVERY = 5.0  # seconds that a good probe is valid; anybody may ask, and each probe is a write
PROBE_AFTER_FAILURE = 1.0
PROBE_TIMEOUT = 5.0
_AFTER_BUG = 1.0


class _Task:
    """Something that is done again and again, on the event loop from `start` to `stop`."""

    def __init__(self, vault: Vault, executors: Executors) -> None:
        self._vault = vault
        self._executors = executors
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin. Call this on the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """End. Call this when no request is in flight any more."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            try:
                await self._work()
            except Exception as error:  # a task that ended would be missed only much later
                log_bug(error)
                await asyncio.sleep(_AFTER_BUG)

    async def _work(self) -> None:
        """Do it once, and wait."""
        raise NotImplementedError


class RefusalTimer(_Task):
    """Records the sums of repeated refusals when their windows end. Closing the vault records the rest."""

    async def _work(self) -> None:
        await asyncio.sleep(SUMS_EVERY)
        try:
            await self._executors.run(self._vault.record_refusal_sums)
        except GussetError as error:
            log.warning("The sums of refused requests could not be recorded: %s", error.message)


class CheckpointTimer(_Task):
    """Signs the newest audit record if it has no checkpoint, whoever wrote it: also a manager that died.

    Closing the vault signs the last one.
    """

    _failed = False

    def __init__(self, vault: Vault, executors: Executors) -> None:
        super().__init__(vault, executors)
        # A thread of its own, so that signing never waits behind slow requests.
        self._thread = ThreadPoolExecutor(1, "gusset-signing")

    def start(self) -> None:
        """Sign the newest record before anything is served, then keep doing so."""
        try:
            self._vault.sign_head()
        except GussetError as error:
            self._report(error)
        except Exception as error:  # a record that was altered keeps no manager from starting
            log_bug(error)
        super().start()

    def stop(self) -> None:
        """End, once a signature under way is complete."""
        super().stop()
        self._thread.shutdown()

    async def _work(self) -> None:
        await asyncio.sleep(_SIGN_AFTER_FAILURE if self._failed else _SIGN_CHECK_EVERY)
        if self._vault.seconds_since_signing() < SIGN_AFTER:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._vault.sign_head)
            self._failed = False
        except GussetError as error:
            self._report(error)

    def _report(self, error: GussetError) -> None:
        if not self._failed:
            log.warning("The audit log's newest record cannot be signed: %s", error.message)
        self._failed = True


class ManagerReports(_Task):
    """Reports to the vault that this manager is alive, and finds out whether its keys can still be read."""

    def __init__(self, vault: Vault, executors: Executors) -> None:
        super().__init__(vault, executors)
        self._host = socket.gethostname()
        self._error: GussetError | None = None

    def stop(self) -> None:
        """Report no more, and remove the report."""
        super().stop()
        if self._task is not None:
            try:
                self._vault.managers.leave()
            except GussetError as error:
                log.warning("Could not record that this manager is stopping: %s", error.message)

    def check(self) -> None:
        """Raises RootKeyError or IntegrityError if the last report failed: the keyring cannot be read."""
        if isinstance(self._error, VaultError):
            raise self._error

    async def _work(self) -> None:
        failed_before = self._error is not None
        try:
            await self._executors.run_slow(self._vault.managers.report, self._host)
            self._error = None
        except GussetError as error:
            self._error = error
            if not failed_before:
                hint = f" ({error.hint})" if error.hint else ""
                log.warning("This manager cannot report to the vault: %s%s", error.message, hint)
        await asyncio.sleep(REPORT_EVERY)


class LeaseTimer(_Task):
    """Writes renewals of replicas' leases and uses of keys in batches, and replicas' reports soon."""

    def __init__(self, vault: Vault, executors: Executors, write_uses: Callable[[], None]) -> None:
        super().__init__(vault, executors)
        self._write_uses = write_uses
        self._due = 0.0

    def stop(self) -> None:
        """Write what is left."""
        super().stop()
        try:
            self._vault.leases.flush()
            self._write_uses()
        except GussetError as error:
            log.warning("The leases of replicas could not be written: %s", error.message)

    async def _work(self) -> None:
        await asyncio.sleep(REPLICA_REPORTS_EVERY)
        now = time.monotonic()
        if now >= self._due:
            # Managers that were started together should not write together.
            self._due = now + random.uniform(0.6, 1.0) * RENEWALS_EVERY  # noqa: S311  # nothing secret
            await self._flush(reports_only=False)
        elif self._vault.leases.has_reports:
            await self._flush(reports_only=True)

    async def _flush(self, *, reports_only: bool) -> None:
        try:
            await self._executors.run(self._vault.leases.flush, reports_only=reports_only)
            if not reports_only:
                await self._executors.run(self._write_uses)
        except GussetError as error:
            log.warning("The leases of replicas could not be written: %s", error.message)


class OverlapTimer(_Task):
    """Ends overlaps in time; replicas notice it as a change."""

    def __init__(self, vault: Vault, executors: Executors, on_write: Callable[[], None]) -> None:
        super().__init__(vault, executors)
        self._on_write = on_write

    async def _work(self) -> None:
        await asyncio.sleep(OVERLAPS_EVERY)
        try:
            if await self._executors.run(self._vault.overlaps.end_due):
                self._on_write()
        except GussetError as error:  # delivery compares the time itself
            log.warning("The expired overlaps could not be ended: %s", error.message)


class WriteProbe:
    """Whether the vault can be written: a full or failing disk shows itself only by a write."""

    def __init__(self, vault: Vault, executors: Executors) -> None:
        self._vault = vault
        self._executors = executors
        self._probe: asyncio.Task[GussetError | None] | None = None
        self._valid_until = 0.0

    async def check(self) -> None:
        """Probe, unless that was done a moment ago.

        Raises:
            HostError: the disk is full, failing or read-only.
            Unreachable: another process has kept the vault locked.
        """
        probe = self._probe  # another check may begin a new one meanwhile
        if probe is None or (probe.done() and time.monotonic() >= self._valid_until):
            probe = self._probe = asyncio.get_running_loop().create_task(self._run())
        done, _ = await asyncio.wait((probe,), timeout=within(PROBE_TIMEOUT) - time.monotonic())
        if not done:
            raise Unreachable("the vault could not be written in time")
        if (error := probe.result()) is not None:
            raise error

    async def _run(self) -> GussetError | None:
        try:
            await self._executors.run(self._vault.check_writable)
        except GussetError as error:
            self._valid_until = time.monotonic() + PROBE_AFTER_FAILURE
            return error
        self._valid_until = time.monotonic() + PROBE_EVERY
        return None
