"""Takes a rotation from step to step. Every step is stored before the next begins.

A process that is killed anywhere leaves a rotation that the next run continues: the provider is run again
with the same rotation id, for which it makes no second credential, or with the same handle.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from gusset.errors import GussetError, ProviderFailed, RotationUnfinished, Unreachable
from gusset.rotation import contract
from gusset.rotation.contract import Created
from gusset.rotation.replicas import Policy, Rollout, held_back_by, lost_before
from gusset.rotation.state import RENEW_EVERY, ProviderRotation, Step
from gusset.secrets.value import SecretValue

POLL_EVERY = 0.25  # seconds
RETRY_EVERY = 1.0  # seconds, while the manager does not respond
MAX_ACCEPTED = 50  # replicas that are named, of those that a rotation does not wait for


class RotationStore(Protocol):
    """Stored rotations. Methods that change one raise Conflict while another process holds it."""

    def begin(self, name: str, *, current_handle: str | None) -> ProviderRotation:
        """Begin a rotation of the secret, or continue the unfinished one."""

    def renew(self, rotation: ProviderRotation) -> None:
        """Hold the rotation for longer. Raises Conflict if the secret got another value meanwhile."""

    def set(self, rotation: ProviderRotation, created: Created, overlap: timedelta) -> ProviderRotation:
        """Store the new credential as a version. The rotation is then in the step `acknowledge`."""

    def advance(self, rotation: ProviderRotation, step: Step, accepted: list[str]) -> ProviderRotation:
        """Advance to `step`. `accepted` is what the rotation did not wait for."""

    def revoked(self, rotation: ProviderRotation, handle: str) -> ProviderRotation:
        """Store that the provider has revoked the credential with that handle."""

    def finish(self, rotation: ProviderRotation) -> None:
        """The rotation is done: end it, and the overlap."""

    def cancel(self, name: str) -> ProviderRotation:
        """End the rotation of a secret without revoking anything."""

    def stop(self, rotation: ProviderRotation, code: str) -> None:
        """Record why the rotation has stopped, and let other processes continue it."""

    def rollout(self, rotation: ProviderRotation) -> Rollout:
        """How far the new version has replaced those before it. Raises Conflict for another secret's name."""


class StepUnknown(Exception):
    """The provider's program does not have this step, or does not rotate this secret."""


class Provider(Protocol):
    """A provider's program."""

    def run(self, step: str, request: bytes, while_running: Callable[[], None]) -> bytes:
        """Run one step and return the output. `while_running` is called many times a second.

        Raises:
            StepUnknown: the program says so.
            ProviderFailed: it failed, or took too long.
        """

    def show(self, created: Created | None) -> None:
        """Show what the program wrote to its standard error in the last step, masked."""


class Skipped(Exception):
    """The provider's program does not rotate this secret. Nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRotation:
    """A finished rotation."""

    name: str
    version: int
    revoked: int  # credentials


class Driver:
    """Rotates secrets, one at a time."""

    def __init__(
        self,
        rotations: RotationStore,
        provider: Provider,
        *,
        policy: Policy,
        overlap: timedelta,
        timeout: float,
        note: Callable[[str], None],
        take_value: Callable[[str, SecretValue], None],
    ) -> None:
        """`timeout` are the seconds to wait for replicas. `note` is called with a line for each step.

        `take_value` is called with the secret's name and its new value before that is stored.
        """
        self._rotations = rotations
        self._provider = provider
        self._policy = policy
        self._overlap = overlap
        self._timeout = timeout
        self._note = note
        self._take_value = take_value
        self._renewed = 0.0
        self._printed: set[str] = set()  # lines about what was not waited for

    def rotate(self, name: str, *, current_handle: str | None = None) -> FinishedRotation:
        """Rotate a secret, or continue its unfinished rotation.

        Raises:
            Skipped: the provider does not rotate it.
            ProviderFailed: a step of the provider failed; the same call continues there.
            RotationUnfinished: some replicas may still use the old value; the same call continues there.
            Conflict: another process rotates it, or it got another value meanwhile.
        """
        rotation = self._rotations.begin(name, current_handle=current_handle)
        self._renewed = time.monotonic()
        try:
            return self._run(rotation)
        except Skipped:
            raise
        except BaseException as error:  # Ctrl-C, too: the next run need not wait until the lease has ended
            with suppress(GussetError):
                code = error.code if isinstance(error, GussetError) else "interrupted"
                self._rotations.stop(rotation, code)
            raise

    def _run(self, rotation: ProviderRotation) -> FinishedRotation:
        if rotation.step is Step.CREATE:
            rotation = self._create(rotation)
        deadline = time.monotonic() + self._timeout
        if rotation.step is Step.ACKNOWLEDGE:
            rotation = self._wait(rotation, Step.USE, deadline)
        if rotation.step is Step.USE:
            rotation = self._wait(rotation, Step.REVOKE, deadline)
        revoked = len(rotation.revoke)
        for handle in rotation.revoke:
            rotation = self._revoke(rotation, handle)
        self._rotations.finish(rotation)
        assert rotation.version is not None  # noqa: S101  # `set` has stored it
        return FinishedRotation(name=rotation.name, version=rotation.version, revoked=revoked)

    def _create(self, rotation: ProviderRotation) -> ProviderRotation:
        self._note(f"{rotation.name}: the provider makes a credential")
        created = None
        try:
            output = self._call(rotation, "create", contract.create_request(rotation))
            created = contract.parse_created(output)
        except StepUnknown:
            self._rotations.cancel(rotation.name)
            raise Skipped from None
        finally:
            self._provider.show(created)
        self._take_value(rotation.name, created.value)
        try:
            self._call(rotation, "verify", contract.verify_request(rotation, created))
        except StepUnknown:
            pass
        finally:
            self._provider.show(created)
        rotation = self._rotations.set(rotation, created, self._overlap)
        self._note(f"{rotation.name}: version {rotation.version} is set")
        return rotation

    def _wait(self, rotation: ProviderRotation, following: Step, deadline: float) -> ProviderRotation:
        """Wait until the step is done, then go on to the step `following`."""
        assert rotation.version is not None  # noqa: S101  # `set` has stored it
        strict = Policy(whole_overlap=self._policy.whole_overlap)
        is_noted = False
        while True:
            rollout, now = self._rollout(rotation, deadline), datetime.now(UTC)
            waits_for = held_back_by(rotation.step, rollout, rotation.version, self._policy, now)
            if not waits_for:
                accepted = held_back_by(rotation.step, rollout, rotation.version, strict, now)
                return self._go_on(rotation, following, [*accepted, *lost_before(rollout)])
            if time.monotonic() >= deadline:
                raise _unfinished(rotation, waits_for)
            if not is_noted:
                self._note(f"{rotation.name}: waiting, {'; '.join(waits_for[:3])}")
                is_noted = True
            self._renew(rotation)
            time.sleep(POLL_EVERY)

    def _go_on(self, rotation: ProviderRotation, step: Step, accepted: list[str]) -> ProviderRotation:
        """Advance to `step`. What was not waited for is printed once, and recorded in the audit log."""
        if (more := len(accepted) - MAX_ACCEPTED) > 0:
            accepted = [*accepted[:MAX_ACCEPTED], f"and {more} more"]
        for line in (f"{rotation.name}: not waiting, {each}" for each in accepted):
            if line not in self._printed:
                self._note(line)
                self._printed.add(line)
        return self._rotations.advance(rotation, step, accepted)

    def _rollout(self, rotation: ProviderRotation, deadline: float) -> Rollout:
        """How far the new version has come. Until `deadline`, retries while the manager does not respond."""
        while True:
            try:
                return self._rotations.rollout(rotation)
            except Unreachable:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(RETRY_EVERY)

    def _revoke(self, rotation: ProviderRotation, handle: str) -> ProviderRotation:
        self._rotations.renew(rotation)  # also checks that the secret still has the new version
        self._note(f"{rotation.name}: the provider revokes {handle}")
        try:
            self._call(rotation, "revoke", contract.revoke_request(rotation, handle))
        except StepUnknown:
            raise ProviderFailed("the provider's program does not have the step revoke") from None
        finally:
            self._provider.show(None)
        return self._rotations.revoked(rotation, handle)

    def _call(self, rotation: ProviderRotation, step: str, request: bytes) -> bytes:
        return self._provider.run(step, request, lambda: self._renew(rotation))

    def _renew(self, rotation: ProviderRotation) -> None:
        if time.monotonic() - self._renewed >= RENEW_EVERY:
            with suppress(Unreachable):  # storing the next step fails if another process has it by then
                self._rotations.renew(rotation)
            self._renewed = time.monotonic()


def _unfinished(rotation: ProviderRotation, waits_for: list[str]) -> RotationUnfinished:
    first = "; ".join(waits_for[:5]) + (f"; and {len(waits_for) - 5} more" if len(waits_for) > 5 else "")
    return RotationUnfinished(
        f"version {rotation.version} of {rotation.name} is set, but nothing is revoked yet: {first}",
        hint="run the same command again to continue; docs/rotation.md explains what it waits for",
    )
